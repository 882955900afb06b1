#include "clock.h"

#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "machine.h"

namespace ptx {
namespace {

// Cycles, roughly those of Hopper.
constexpr int kArithmetic = 5, kWide = 8, kSpecial = 30, kShuffle = 26, kReduction = 30, kMma = 34;
constexpr int kConvert = 8, kDivision = 72, kShared = 31, kAtomic = 60, kParameter = 8;
constexpr int kCacheHit = 38, kCacheMiss = 300, kBranch = 6, kBarrier = 25;
constexpr int kFetch = 64, kFetched = 8;  // for so many instructions
constexpr int kLine = 128;                // bytes of a cache line
constexpr int kSchedulers = 4;

// The schedulers' issue slots, their special functions and matrix units; one memory unit for all.
enum Pipe { kIssue, kFunctions, kMatrices, kMemory, kPipes };
constexpr const char* kPipeNames[] = {"issue", "special", "matrix", "memory"};

struct Cost {
  int latency, busy;  // of the pipe
  Pipe pipe = kIssue;
};

template <typename... Names>
bool any_of(const std::string& name, Names... names) {
  return ((name == names) || ...);
}

bool has_result(const Instruction& i) {
  return !any_of(i.name(), "st", "stmatrix", "red", "prefetch", "fence", "cp", "bar") &&
         !i.operands.empty();
}

// Columns of a warp group's product, "m64n128k16"; 0 for its other instructions.
int group_columns(const Instruction& i) {
  for (const std::string& part : *i.parts) {
    if (part.starts_with("m64n")) return std::stoi(part.substr(4));
  }
  return 0;
}

bool of_memory(const Instruction& i) {
  const bool copies = i.name() == "cp" && i.r.size() >= 2;  // no commit, no wait
  return copies || any_of(i.name(), "ld", "st", "atom", "red");
}

Cost cost_of(const Instruction& i) {
  const std::string& name = i.name();
  const bool wide = i.has("b64") || i.has("s64") || i.has("u64") || i.has("f64");
  if (name == "mov") return {0, 0};
  if (name == "mma") return {kMma, 8, kMatrices};
  if (name == "wgmma") return {kMma + group_columns(i) / 2, group_columns(i) / 2 + 1, kMatrices};
  if (any_of(name, "ldmatrix", "stmatrix")) return {kShared, i.has("x4") ? 4 : 2, kMemory};
  if (any_of(name, "ex2", "lg2", "rcp", "sqrt", "rsqrt", "tanh")) return {kSpecial, 8, kFunctions};
  if (any_of(name, "popc", "clz", "bfind", "brev")) return {kSpecial / 2, 8, kFunctions};
  if (name == "shfl") return {kShuffle, 2, kMemory};
  if (name == "redux") return {kReduction, 2, kMemory};
  if (name == "cvt" && i.has("rn")) return {kConvert, 2};
  if (any_of(name, "div", "rem")) return {wide ? 2 * kDivision : kDivision, 20};
  if (any_of(name, "mul", "mad")) return {wide && !i.has("wide") ? 15 : kArithmetic, wide ? 3 : 1};
  return {wide ? kWide : kArithmetic, wide ? 2 : 1};
}

// Bytes of one lane's access.
int bytes_of(Warp& warp, const Instruction& i, const Operand& data) {
  if (i.name() == "cp") return static_cast<int>(warp.reg(i.r[2])[0]);
  const std::string& type = i.part(-1);
  return std::stoi(type.substr(1)) / 8 * data.count;
}

}  // namespace

struct Clock::State {
  struct Issue {  // one instruction of this phase
    int at, after;
    int64_t time;
  };
  struct OfWarp {
    int64_t start = 0, latest = 0, issued = 0;  // of this chain; issued: slots since its start
    int start_issue = -1, latest_issue = -1;
    int64_t copied = 0;  // when the last of its asynchronous copies arrives
    std::vector<int64_t> ready;
    std::vector<int> from;  // who wrote a register
  };
  struct Phase {
    int at;
    int64_t chain;
    std::array<int64_t, kPipes> busy;
  };

  State(const Function& function, std::span<char> shared) : function(function), shared(shared) {}

  const Function& function;
  std::span<char> shared;
  std::vector<OfWarp> warps;
  std::vector<Issue> issues;
  std::vector<int64_t> fetched;
  std::map<uint64_t, int64_t> lines;  // when each is in the cache
  int64_t phase_start = 0;
  std::array<std::array<int64_t, kSchedulers>, kPipes> busy{};
  std::vector<Phase> phases;
  std::map<int, int64_t> waits;  // of the longest chains, by the instruction

  // What an access takes, from the banks or the lines that it touches.
  Cost access(Warp& warp, const Instruction& i, uint32_t lanes, int64_t time, OfWarp& own);
  std::string place(int at) const;
};

Clock::Clock(const Function& function, int warps, std::span<char> shared_memory)
    : state_(std::make_unique<State>(function, shared_memory)) {
  state_->warps.resize(warps);
  for (State::OfWarp& warp : state_->warps) {
    warp.ready.assign(function.num_registers, 0);
    warp.from.assign(function.num_registers, -1);
  }
  state_->fetched.assign(function.code.size() / kFetched + 1, -1);
}
Clock::~Clock() = default;

Cost Clock::State::access(Warp& warp, const Instruction& i, uint32_t lanes, int64_t time,
                          OfWarp& own) {
  if (i.has("param")) return {kParameter, 1, kMemory};
  const bool stores = any_of(i.name(), "st", "red"), loads = i.name() == "ld";
  const Operand& address = i.operands[stores ? 0 : 1];
  const int reg = stores ? 0 : i.operands[0].count;
  const int bytes = bytes_of(warp, i, i.operands[stores ? 1 : 0]);
  const int together = std::clamp(kLanes * 4 / std::max(bytes, 4), 1, kLanes);  // 128 bytes
  int waves = 0, alike = 1;  // alike: most lanes at one address
  std::set<uint64_t> touched;
  for (int first = 0; first < kLanes; first += together) {
    std::map<uint64_t, std::set<uint64_t>> banks;
    std::map<uint64_t, int> addresses;
    each(lanes, [&](int lane) {
      if (lane < first || lane >= first + together) return;
      uint64_t at = warp.reg(i.r[reg])[lane] + address.offset;
      const uint64_t offset = at - reinterpret_cast<uint64_t>(shared.data());
      const bool named = i.name() != "cp" && (i.has("shared") || i.has("shared::cta"));
      if (!named && offset >= shared.size()) {
        touched.insert(at / kLine);
        return;
      }
      at = named ? static_cast<uint32_t>(at) : offset;
      for (uint64_t word = at / 4; word <= (at + bytes - 1) / 4; ++word) {
        banks[word % 32].insert(word);
      }
      alike = std::max(alike, ++addresses[at]);
    });
    size_t most = 0;
    for (const auto& [bank, words] : banks) most = std::max(most, words.size());
    waves += static_cast<int>(most);
  }
  if (touched.empty()) {
    const int latency = loads ? kShared : i.name() == "atom" ? kAtomic + 4 * (alike - 1) : 1;
    return {latency + 2 * std::max(0, waves - 1), std::max(waves, 1), kMemory};
  }
  int64_t arrival = time + kCacheHit;
  for (const uint64_t line : touched) {
    arrival = std::max(arrival, lines.try_emplace(line, time + kCacheMiss).first->second);
  }
  if (i.name() == "cp") own.copied = std::max(own.copied, arrival);
  const bool waits = loads || i.name() == "atom";
  return {waits ? static_cast<int>(arrival - time) : 1, static_cast<int>(touched.size()), kMemory};
}

void Clock::issue(Warp& warp, int at, uint32_t lanes) {
  State& s = *state_;
  State::OfWarp& own = s.warps[warp.index()];
  const Instruction& i = s.function.code[at];
  const int results = has_result(i) ? i.operands[0].count : 0;
  int64_t& fetched = s.fetched[at / kFetched];
  if (fetched < 0) fetched = own.start + own.issued + kFetch;
  own.start = std::max(own.start, fetched - own.issued);
  int64_t time = own.start + own.issued;
  int after = own.start_issue;
  const auto wait_for = [&](int reg) {
    if (own.ready[reg] > time) time = own.ready[reg], after = own.from[reg];
  };
  if (i.guard >= 0) wait_for(i.guard);
  for (size_t k = results; k < i.r.size(); ++k) wait_for(i.r[k]);
  if (i.name() == "cp" && i.has("wait_group")) own.start = time = std::max(time, own.copied);
  const Cost cost = of_memory(i) ? s.access(warp, i, lanes, time, own) : cost_of(i);
  int from = after;
  if (cost.busy > 0) {  // no mov
    s.issues.push_back({at, after, time});
    from = static_cast<int>(s.issues.size()) - 1;
    if (time >= own.latest) own.latest = time, own.latest_issue = from;
  }
  for (int k = 0; k < results; ++k) {
    own.ready[i.r[k]] = time + cost.latency, own.from[i.r[k]] = from;
  }
  const int scheduler = warp.index() % kSchedulers, slots = cost.pipe == kIssue ? cost.busy : 1;
  s.busy[kIssue][scheduler] += slots;
  if (cost.pipe != kIssue) s.busy[cost.pipe][cost.pipe == kMemory ? 0 : scheduler] += cost.busy;
  own.issued += cost.pipe == kMemory ? cost.busy : slots;
}

void Clock::end_chain(const Warp& warp, int at) {
  State& s = *state_;
  State::OfWarp& own = s.warps[warp.index()];
  const Instruction& i = s.function.code[at];
  int64_t time = std::max(own.latest, own.start + own.issued);
  int after = time == own.latest ? own.latest_issue : own.start_issue;
  if (i.guard >= 0 && own.ready[i.guard] > time) {
    time = own.ready[i.guard], after = own.from[i.guard];
  }
  s.issues.push_back({at, after, time});
  own.start_issue = own.latest_issue = static_cast<int>(s.issues.size()) - 1;
  own.start = own.latest = time + (i.flow == Flow::kBranch ? kBranch : 0);
  own.issued = 0;
}

void Clock::end_phase(int at) {
  State& s = *state_;
  const auto end_of = [](const State::OfWarp& warp) {
    return std::max(warp.latest, warp.start + warp.issued);
  };
  const auto last = std::max_element(
      s.warps.begin(), s.warps.end(),
      [&](const auto& one, const auto& other) { return end_of(one) < end_of(other); });
  int64_t time = std::max(end_of(*last), s.phase_start);
  State::Phase phase{at, time - s.phase_start, {}};
  for (int at_issue = last->latest_issue; at_issue >= 0 && time > s.phase_start;) {
    const State::Issue& issue = s.issues[at_issue];
    const int64_t start = std::max(issue.time, s.phase_start);
    s.waits[issue.at] += time - start;
    time = start, at_issue = issue.after;
  }
  int64_t longest = phase.chain;
  for (int pipe = 0; pipe < kPipes; ++pipe) {
    phase.busy[pipe] = *std::max_element(s.busy[pipe].begin(), s.busy[pipe].end());
    longest = std::max(longest, phase.busy[pipe]);
  }
  s.phases.push_back(phase);
  s.phase_start += longest + (at >= 0 ? kBarrier : 0);
  s.busy = {};
  s.issues.clear();
  for (State::OfWarp& warp : s.warps) {
    warp.start = warp.latest = s.phase_start;
    warp.issued = 0, warp.start_issue = warp.latest_issue = -1;
    std::fill(warp.from.begin(), warp.from.end(), -1);
  }
}

std::string Clock::State::place(int at) const {
  std::ostringstream text;
  int source = function.code[at].source;
  if (source < 0) text << "line " << function.code[at].line;
  for (bool first = true; source >= 0; first = false) {
    const Source& one = function.sources->at(source);
    text << (first ? "" : " < ") << function.files->at(one.file) << ":" << one.line;
    source = one.inlined_at;
  }
  return text.str();
}

std::string Clock::report(int block) const {
  const State& s = *state_;
  constexpr size_t kMost = 20;
  std::ostringstream text;
  const auto column = [&](const auto& value) {
    text.width(8);
    text << value;
  };
  const auto seen =
      std::count_if(s.fetched.begin(), s.fetched.end(), [](int64_t time) { return time >= 0; });
  text << s.function.name << ", block " << block << ": " << s.phase_start << " cycles, "
       << s.phases.size() << " phases, " << seen * kFetched << " instructions seen\n";
  column("chain");
  for (const char* name : kPipeNames) column(name);
  text << "  until the barrier at\n";
  for (const State::Phase& phase : s.phases) {
    column(phase.chain);
    for (const int64_t busy : phase.busy) column(busy);
    text << "  " << (phase.at < 0 ? "the end" : s.place(phase.at)) << "\n";
  }
  std::map<std::string, int64_t> by_place;
  for (const auto& [at, cycles] : s.waits) by_place[s.place(at)] += cycles;
  std::vector<std::pair<int64_t, std::string>> places;
  for (const auto& [place, cycles] : by_place) places.emplace_back(cycles, place);
  std::sort(places.rbegin(), places.rend());
  text << "longest chains, by place\n";
  for (size_t i = 0; i < std::min(kMost, places.size()); ++i) {
    column(places[i].first);
    text << "  " << places[i].second << "\n";
  }
  return text.str();
}

}  // namespace ptx
