#include "machine.h"

#include <numeric>
#include <sstream>

namespace lockstep {
namespace {

constexpr size_t kStackBytes = 256 << 10;
Machine* running = nullptr;
uint64_t epoch = 0;  // one for every stretch between two barriers

}  // namespace

Machine::Machine(int lanes, int team_size, uint64_t seed)
    : lanes_(lanes),
      team_size_(team_size),
      state_(seed * 2 + 1),
      fibers_(lanes),
      barriers_(1 + lanes / team_size) {
  ++epoch;
  for (Barrier& barrier : barriers_) barrier.members = team_size;
  barriers_[0].members = lanes;
  for (auto& sets : slots_) sets[0].resize(lanes), sets[1].resize(lanes);
  for (auto& turns : turns_) turns.resize(lanes);
}

uint64_t Machine::random() {  // xorshift64
  state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
  return state_;
}

void Machine::fail(std::string what) {
  if (wrong_.empty()) wrong_ = std::move(what);
}

void Machine::enter(unsigned high, unsigned low) {
  auto* machine = reinterpret_cast<Machine*>(static_cast<uintptr_t>(high) << 32 | low);
  const int lane = machine->current_;
  (*machine->body_)(lane);
  machine->fibers_[lane].done = true;
  swapcontext(&machine->fibers_[lane].context, &machine->scheduler_);
}

std::string Machine::run(const std::function<void(int)>& body) {
  body_ = &body;
  const auto self = reinterpret_cast<uintptr_t>(this);
  for (Fiber& fiber : fibers_) {
    fiber.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Machine::enter), 2,
                static_cast<unsigned>(self >> 32), static_cast<unsigned>(self));
  }
  std::vector<int> order(lanes_);
  std::iota(order.begin(), order.end(), 0);
  for (int done = 0; done < lanes_;) {
    for (int i = lanes_ - 1; i > 0; --i) std::swap(order[i], order[random() % (i + 1)]);
    bool progress = false;
    done = 0;
    for (const int lane : order) {
      Fiber& fiber = fibers_[lane];
      if (fiber.runnable && !fiber.done) {
        progress = true;
        current_ = lane;
        running = this;
        swapcontext(&scheduler_, &fiber.context);
        running = nullptr;
      }
      done += fiber.done;
    }
    if (!progress && done < lanes_) {
      fail("some lanes wait in a collective that the others never reach");
      break;
    }
  }
  return wrong_;
}

void Machine::wait(int lane, int team, const char* collective) {
  running = nullptr;  // what the machine itself touches is not watched
  Barrier& barrier = barriers_[team + 1];
  if (barrier.arrived > 0 && barrier.collective != collective) {
    fail(std::string("lanes meet in different collectives: ") + barrier.collective + " and " +
         collective);
  }
  barrier.collective = collective;
  if (++barrier.arrived < barrier.members) {
    fibers_[lane].runnable = false;
    swapcontext(&fibers_[lane].context, &scheduler_);
    return;
  }
  barrier.arrived = 0;
  const int first = team < 0 ? 0 : team * team_size_;
  for (int i = first; i < first + barrier.members; ++i) fibers_[i].runnable = true;
  if (team < 0) ++epoch, ++barrier_;
  // the last one to arrive goes on later too, so that any lane may be the first to continue
  swapcontext(&fibers_[lane].context, &scheduler_);
}

void Machine::exchange(int lane, int team, const char* collective, uint64_t value, uint64_t* all) {
  std::vector<uint64_t>& slots = slots_[team < 0][turns_[team < 0][lane]++ % 2];
  slots[lane] = value;
  wait(lane, team, collective);
  const int first = team < 0 ? 0 : team * team_size_, count = team < 0 ? lanes_ : team_size_;
  for (int i = 0; i < count; ++i) all[i] = slots[first + i];
}

int Machine::add(int, int* counter, int value) {
  record(counter, sizeof(int), Access::kAtomic);
  const int before = *counter;
  *counter += value;
  return before;
}

void Machine::lower(int, int* slot, int value) {
  record(slot, sizeof(int), Access::kAtomic);
  if (value < *slot) *slot = value;
}

void Machine::set_bits(int, uint32_t* word, uint32_t bits) {
  record(word, sizeof(uint32_t), Access::kAtomic);
  *word |= bits;
}

void Machine::record(const void* address, unsigned bytes, Access access) {
  Machine* machine = running;
  if (machine == nullptr) return;
  const auto first = reinterpret_cast<uintptr_t>(address);
  for (uintptr_t at = first; at < first + bytes;) {
    Cell& found = machine->cell(at / 4);
    do {
      machine->touch(found.bytes[at % 4], access);
    } while (++at % 4 != 0 && at < first + bytes);
  }
}

Machine::Cell& Machine::cell(uintptr_t word) {
  constexpr int kBits = 20;  // more cells than a kernel touches between two barriers
  static std::vector<Cell> cells(1 << kBits);
  size_t i = word * 0x9E3779B97F4A7C15ull >> (64 - kBits);
  while (cells[i].epoch == epoch && cells[i].word != word) i = (i + 1) % cells.size();
  if (cells[i].epoch != epoch) cells[i] = {word, epoch, {}};
  return cells[i];
}

void Machine::touch(Byte& byte, Access access) {
  const auto other = [&](int8_t lane) { return lane != kNone && lane != current_; };
  const bool race = other(byte.writer) || (access != Access::kAtomic && other(byte.atomic)) ||
                    (access != Access::kRead && other(byte.reader));
  if (race) {
    const int lane = other(byte.writer)   ? byte.writer
                     : other(byte.atomic) ? byte.atomic
                                          : byte.reader;
    std::ostringstream text;
    text << "race: lane " << current_ << (access == Access::kRead ? " reads" : " writes")
         << " what lane " << lane << " touched since the last barrier, the " << barrier_ << "th";
    fail(text.str());
  }
  int8_t& mine = access == Access::kRead    ? byte.reader
                 : access == Access::kWrite ? byte.writer
                                            : byte.atomic;
  mine = mine == kNone || mine == current_ ? static_cast<int8_t>(current_) : kMany;
}

}  // namespace lockstep

// gcc -fsanitize=thread calls these for every access; we are their only implementation.
#define WATCH(bytes)                                                     \
  extern "C" void __tsan_read##bytes(void* address) {                    \
    lockstep::Machine::record(address, bytes, lockstep::Access::kRead);  \
  }                                                                      \
  extern "C" void __tsan_write##bytes(void* address) {                   \
    lockstep::Machine::record(address, bytes, lockstep::Access::kWrite); \
  }
WATCH(1)
WATCH(2)
WATCH(4)
WATCH(8)
WATCH(16)
#undef WATCH
#define WATCH_UNALIGNED(bytes)                                           \
  extern "C" void __tsan_unaligned_read##bytes(void* address) {          \
    lockstep::Machine::record(address, bytes, lockstep::Access::kRead);  \
  }                                                                      \
  extern "C" void __tsan_unaligned_write##bytes(void* address) {         \
    lockstep::Machine::record(address, bytes, lockstep::Access::kWrite); \
  }
WATCH_UNALIGNED(2)
WATCH_UNALIGNED(4)
WATCH_UNALIGNED(8)
WATCH_UNALIGNED(16)
#undef WATCH_UNALIGNED
extern "C" void __tsan_read_range(void* address, unsigned long bytes) {
  lockstep::Machine::record(address, bytes, lockstep::Access::kRead);
}
extern "C" void __tsan_write_range(void* address, unsigned long bytes) {
  lockstep::Machine::record(address, bytes, lockstep::Access::kWrite);
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void*, void*) {}
extern "C" void __tsan_vptr_read(void*) {}
// of the reference counts of tensors, on the host
extern "C" int __tsan_atomic32_fetch_add(volatile int* address, int value, int) {
  return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);
}
