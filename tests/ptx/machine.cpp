#include "machine.h"

#include <string.h>

#include <algorithm>
#include <fstream>
#include <numeric>
#include <sstream>

namespace ptx {
namespace {

constexpr int kAlignment = 1024;   // of shared memory
constexpr int kLongestTurn = 500;  // instructions

uint64_t special(Special which, const Block& block, int thread) {
  const Size threads = block.launch().threads, blocks = block.launch().blocks;
  switch (which) {
    case Special::kThreadX:
      return thread % threads.x;
    case Special::kThreadY:
      return thread / threads.x % threads.y;
    case Special::kThreadZ:
      return thread / (threads.x * threads.y);
    case Special::kBlockX:
      return block.index().x;
    case Special::kBlockY:
      return block.index().y;
    case Special::kBlockZ:
      return block.index().z;
    case Special::kThreadsX:
      return threads.x;
    case Special::kThreadsY:
      return threads.y;
    case Special::kThreadsZ:
      return threads.z;
    case Special::kBlocksX:
      return blocks.x;
    case Special::kBlocksY:
      return blocks.y;
    case Special::kBlocksZ:
      return blocks.z;
    case Special::kLane:
      return thread % kLanes;
    case Special::kWarp:
      return thread / kLanes;
  }
  return 0;
}

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

}  // namespace

Warp::Warp(Block& block, int index) : block_(block), index_(index) {
  const Function& function = *block.launch().function;
  registers_.resize(function.num_registers);
  for (Lanes& lanes : registers_) memset(lanes.data(), kRubbish, sizeof(lanes));
  for (const auto& [reg, value] : function.constants) registers_[reg].fill(value);
  for (const auto& [reg, which] : function.specials) {
    for (int i = 0; i < kLanes; ++i) registers_[reg][i] = special(which, block, thread(i));
  }
  const int64_t left = std::min<int64_t>(block.launch().threads.count() - index * kLanes, kLanes);
  places_.push_back({0, static_cast<uint32_t>((uint64_t{1} << left) - 1), false});
}

uint32_t Warp::alive() const {
  uint32_t lanes = 0;
  for (const Place& place : places_) lanes |= place.lanes;
  return lanes;
}

size_t Warp::furthest_behind() const {
  size_t best = places_.size();
  for (size_t i = 0; i < places_.size(); ++i) {
    if (places_[i].waits) continue;
    if (best == places_.size() || places_[i].at < places_[best].at) best = i;
  }
  if (best == places_.size()) fail("lanes of a warp wait for each other at different places");
  return best;
}

void Warp::run(int instructions) {
  for (int i = 0; i < instructions && !done() && !at_barrier_; ++i) {
    step(places_.size() == 1 ? 0 : furthest_behind());
  }
}

void Warp::leave_barrier() {
  at_barrier_ = false;
  ++places_[0].at;
}

void Warp::step(size_t index) {
  Place& place = places_[index];
  const Instruction& instruction = block_.launch().function->code[place.at];
  line_ = instruction.line;
  uint32_t lanes = place.lanes;
  if (instruction.guard >= 0) {
    const uint64_t* guard = reg(instruction.guard);
    uint32_t passed = 0;
    for (int i = 0; i < kLanes; ++i) {
      passed |= static_cast<uint32_t>((guard[i] & 1) != instruction.unless) << i;
    }
    lanes &= passed;
  }
  const auto meet = [&] {  // places that became one
    for (size_t i = 0; i < places_.size(); ++i) {
      for (size_t j = places_.size() - 1; j > i; --j) {
        if (places_[i].at != places_[j].at) continue;
        places_[i].lanes |= places_[j].lanes, places_[i].waits = false;
        places_.erase(places_.begin() + j);
      }
    }
  };
  Clock* const clock = block_.clock();
  switch (instruction.flow) {
    case Flow::kNext:
      if (clock != nullptr) clock->issue(*this, place.at, lanes);
      if (lanes != 0) instruction.run(*this, instruction, lanes);
      ++place.at;
      break;
    case Flow::kBranch:
      if (clock != nullptr) clock->end_chain(*this, place.at);
      if (lanes == place.lanes) {
        place.at = instruction.target;
      } else {
        place.lanes &= ~lanes, ++place.at;
        if (lanes != 0) places_.push_back({instruction.target, lanes, false});
      }
      break;
    case Flow::kExit:
      place.lanes &= ~lanes, ++place.at;
      if (place.lanes == 0) places_.erase(places_.begin() + index);
      break;
    case Flow::kBarrier:
      if (lanes != place.lanes) fail("a barrier for some of a warp's lanes only");
      if (places_.size() > 1) {
        place.waits = true;
        return;
      }
      at_barrier_ = true;
      if (clock != nullptr) clock->end_chain(*this, place.at);
      return;
    case Flow::kWarpSync: {
      uint32_t wanted = 0;  // by any of the lanes
      each(lanes, [&](int lane) {
        const uint32_t mask = instruction.has("aligned")
                                  ? 0xFFFFFFFF
                                  : static_cast<uint32_t>(reg(instruction.r.back())[lane]);
        if (!(mask >> lane & 1)) fail("a lane that its own mask does not name");
        wanted |= mask;
      });
      if ((alive() & wanted) != wanted) fail("waits for lanes that have ended, or never were");
      if ((lanes & wanted) != wanted) {
        if (places_.size() == 1) fail("waits for lanes that pass it by");
        place.waits = true;
        return;
      }
      if (clock != nullptr) clock->issue(*this, place.at, lanes);
      instruction.run(*this, instruction, lanes);
      syncs_ += instruction.name() == "bar";
      ++place.at;
      break;
    }
  }
  if (places_.size() > 1) meet();
}

char* Warp::shared(uint64_t address, int64_t bytes, int lane, Access access, const void* written) {
  const auto first = static_cast<uint32_t>(address);
  const auto size = static_cast<int64_t>(block_.memory().size());
  if (first + bytes > size) {
    fail("shared memory ends at " + std::to_string(size) + ", before " + std::to_string(first) +
         " + " + std::to_string(bytes));
  }
  if (first % bytes != 0) fail("misaligned address in shared memory");
  char* const at = block_.memory().data() + first;
  const bool changes = written == nullptr || memcmp(at, written, bytes) != 0;
  block_.touch(block_.shared_touches(), first, bytes, *this, lane, access, changes);
  return at;
}

char* Warp::global(uint64_t address, int64_t bytes, int lane, Access access, const void* written) {
  if (address < 4096) fail("a null pointer");
  if (address % bytes != 0) fail("misaligned address in global memory");
  char* const at = reinterpret_cast<char*>(address);
  const bool changes = written == nullptr || memcmp(at, written, bytes) != 0;
  const auto first = static_cast<int64_t>(address % GlobalTouches::kPage);
  block_.touch(block_.global_touches().page_of(address), first, bytes, *this, lane, access,
               changes);
  return at;
}

const char* Warp::read_shared(uint64_t address, int64_t bytes, int lane) {
  return shared(address, bytes, lane, Access::kRead);
}

void Warp::write_shared(uint64_t address, int64_t bytes, int lane, const void* from) {
  memcpy(shared(address, bytes, lane, Access::kWrite, from), from, bytes);
}

const char* Warp::read(uint64_t address, int64_t bytes, int lane) {
  const uint64_t offset = address - reinterpret_cast<uint64_t>(block_.memory().data());
  if (offset < block_.memory().size()) return read_shared(offset, bytes, lane);
  return global(address, bytes, lane, Access::kRead);
}

void Warp::write(uint64_t address, int64_t bytes, int lane, const void* from) {
  const uint64_t offset = address - reinterpret_cast<uint64_t>(block_.memory().data());
  if (offset < block_.memory().size()) return write_shared(offset, bytes, lane, from);
  memcpy(global(address, bytes, lane, Access::kWrite, from), from, bytes);
}

char* Warp::atomic(uint64_t address, int64_t bytes, int lane, bool in_shared) {
  return in_shared ? shared(address, bytes, lane, Access::kAtomic)
                   : global(address, bytes, lane, Access::kAtomic);
}

void Warp::arrive(size_t groups_left) {
  while (groups.size() > groups_left) {
    for (const Copy& copy : groups.front()) {
      char values[16] = {};
      memcpy(values, copy.from, copy.given);
      write_shared(copy.to, copy.bytes, copy.lane, values);
    }
    groups.erase(groups.begin());
  }
}

void Touched::split() {
  for (std::vector<Touch>& touches : touches_) {
    std::vector<Touch> bytes;
    for (const Touch& touch : touches) bytes.insert(bytes.end(), unit_, touch);
    touches = std::move(bytes);
  }
  unit_ = 1;
}

Touched& GlobalTouches::page_of(uint64_t address) {
  const uint64_t page = address / kPage;
  if (latest_.second == nullptr || latest_.first != page) {
    latest_ = {page, &pages_.try_emplace(page, kPage).first->second};
  }
  return *latest_.second;
}

Block::Block(const Launch& launch, int64_t index, GlobalTouches& global, std::mt19937& random)
    : launch_(launch),
      number_(static_cast<int>(index)),
      index_{index % launch.blocks.x, index / launch.blocks.x % launch.blocks.y,
             index / (launch.blocks.x * launch.blocks.y)},
      global_(global),
      random_(random),
      touched_(launch.shared_bytes()) {
  const int64_t bytes = launch.shared_bytes();
  storage_.assign(bytes + kAlignment, kRubbish);
  const auto first = reinterpret_cast<uintptr_t>(storage_.data());
  memory_ = {storage_.data() + (kAlignment - first % kAlignment), static_cast<size_t>(bytes)};
  const auto warps = static_cast<int>((launch.threads.count() + kLanes - 1) / kLanes);
  warps_.reserve(warps);
  for (int i = 0; i < warps; ++i) warps_.emplace_back(*this, i);
}

void Block::touch(Touched& touched, int64_t first, int64_t bytes, const Warp& warp, int lane,
                  Access access, bool changes) {
  const auto thread = static_cast<int16_t>(warp.thread(lane));
  const auto own_warp = static_cast<int16_t>(warp.index());
  const auto apart = [&](const Touch& other) {  // in time
    if (other.block != number_) return other.block == Touch::kNobody;
    return other.barrier != barrier_ || other.thread == thread ||
           (other.warp == own_warp && other.sync < warp.syncs());
  };
  const int unit = touched.unit(bytes);
  std::vector<Touch>& mine = touched.made_by(access);
  for (int64_t i = first / unit; i < (first + bytes) / unit; ++i) {
    for (const Access other : {Access::kWrite, Access::kAtomic, Access::kRead}) {
      const bool alike = access == other && access != Access::kWrite;  // both read, or are atomic
      if (alike || (!changes && other != Access::kAtomic)) continue;
      const std::vector<Touch>& theirs = touched.by(other);
      if (theirs.empty() || apart(theirs[i])) continue;
      std::string who = "others";
      if (theirs[i].thread != Touch::kMany) who = "thread " + std::to_string(theirs[i].thread);
      if (theirs[i].block != number_) who += " of another block";
      fail("race: thread " + std::to_string(thread) +
           (access == Access::kRead ? " reads" : " writes") + " what " + who +
           (other == Access::kRead ? " read" : " wrote") + ", without a barrier between them");
    }
    if (apart(mine[i])) {
      mine[i] = {number_, barrier_, warp.syncs(), thread, own_warp};
    } else {
      const bool same_block = mine[i].block == number_, same_warp = mine[i].warp == own_warp;
      mine[i] = {same_block ? number_ : Touch::kMany, barrier_, warp.syncs(), Touch::kMany,
                 same_block && same_warp ? own_warp : int16_t{Touch::kMany}};
    }
  }
}

void Block::run() {
  std::vector<Warp*> order;
  for (Warp& warp : warps_) order.push_back(&warp);
  while (true) {
    std::shuffle(order.begin(), order.end(), random_);
    bool progress = false, waiting = false;
    for (Warp* warp : order) {
      if (warp->done() || warp->at_barrier()) {
        waiting |= warp->at_barrier();
        continue;
      }
      progress = true;
      try {
        warp->run(1 + random_() % kLongestTurn);
      } catch (const std::exception& error) {
        std::ostringstream text;
        text << launch_.function->name << ", line " << warp->line() << ", block (" << index_.x
             << ", " << index_.y << ", " << index_.z << "), threads " << warp->thread(0) << " to "
             << warp->thread(kLanes - 1) << ": " << error.what();
        throw std::runtime_error(text.str());
      }
    }
    if (progress) continue;
    if (clock_ != nullptr) {
      const auto first = std::find_if(warps_.begin(), warps_.end(),
                                      [](const Warp& warp) { return warp.at_barrier(); });
      clock_->end_phase(first == warps_.end() ? -1 : first->at());
    }
    if (!waiting) return;
    ++barrier_;
    for (Warp& warp : warps_) {
      if (warp.at_barrier()) warp.leave_barrier();
    }
  }
}

void Block::start_clock() {
  clock_ = std::make_unique<Clock>(*launch_.function, static_cast<int>(warps_.size()), memory_);
}

void run(const Launch& launch, uint64_t seed, const std::string& clock_file) {
  const Function& function = *launch.function;
  const int64_t threads = launch.threads.count();
  if (threads > function.max_threads || threads < 1 ||
      (function.exact_threads && threads != function.exact_threads)) {
    fail(function.name + ": launched with " + std::to_string(threads) + " threads");
  }
  if (launch.blocks.count() < 1 || launch.blocks.y > 65535 || launch.blocks.z > 65535) {
    fail(function.name + ": a grid that no GPU launches");
  }
  std::mt19937 random(static_cast<unsigned>(seed));
  std::vector<int64_t> order(launch.blocks.count());
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  GlobalTouches global;
  for (const int64_t i : order) {
    Block block(launch, i, global, random);
    if (!clock_file.empty()) block.start_clock();
    block.run();
    if (!clock_file.empty()) std::ofstream(clock_file, std::ios::app) << block.report() << "\n";
  }
}

}  // namespace ptx
