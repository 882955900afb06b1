// A block of threads that runs a function. Warps take turns of random length. Lanes of a warp may
// be at different places; those furthest behind run first, so that they meet again.

#pragma once

#include <array>
#include <bit>
#include <random>
#include <span>
#include <unordered_map>

#include "clock.h"
#include "program.h"

namespace ptx {

constexpr int kLanes = 32;
constexpr char kRubbish = 0x5B;  // in memory and registers that nothing was written to
using Lanes = std::array<uint64_t, kLanes>;

struct Size {
  int64_t x = 1, y = 1, z = 1;
  int64_t count() const { return x * y * z; }
};

struct Launch {
  const Function* function;
  Size blocks, threads;
  int64_t dynamic_bytes;
  std::vector<char> parameters;
  int64_t shared_bytes() const { return function->shared_bytes + dynamic_bytes; }
};

// The last who touched some bytes in one way: a thread since a barrier of its block and one of its
// warp.
struct Touch {
  static constexpr int kNobody = -1, kMany = -2;
  int block = kNobody, barrier = 0, sync = 0;
  int16_t thread = kMany, warp = kMany;
};

enum class Access { kRead, kWrite, kAtomic };

// Who touched a piece of memory, by words until a smaller access comes.
class Touched {
 public:
  explicit Touched(int64_t bytes) : bytes_(bytes) {}
  // Bytes that share what is known of them, for an access to so many.
  int unit(int64_t bytes) {
    if (bytes % unit_ != 0) split();
    return unit_;
  }
  std::vector<Touch>& by(Access access) { return touches_[static_cast<int>(access)]; }
  std::vector<Touch>& made_by(Access access) {
    if (by(access).empty()) by(access).resize((bytes_ + unit_ - 1) / unit_);
    return by(access);
  }

 private:
  void split();

  int64_t bytes_;
  int unit_ = 4;
  std::array<std::vector<Touch>, 3> touches_;  // empty: nobody
};

// Who touched global memory during a launch.
class GlobalTouches {
 public:
  static constexpr int64_t kPage = 4096;
  Touched& page_of(uint64_t address);

 private:
  std::unordered_map<uint64_t, Touched> pages_;
  std::pair<uint64_t, Touched*> latest_{0, nullptr};
};

class Block;

class Warp {
 public:
  Warp(Block& block, int index);

  // Runs some instructions; throws std::runtime_error for what a GPU would not do, or not reliably.
  void run(int instructions);
  bool done() const { return places_.empty(); }
  bool at_barrier() const { return at_barrier_; }
  int at() const { return places_.front().at; }
  void leave_barrier();

  uint64_t* reg(int index) { return registers_[index].data(); }
  Block& block() const { return block_; }
  int thread(int lane) const { return index_ * kLanes + lane; }
  int index() const { return index_; }
  int syncs() const { return syncs_; }
  int line() const { return line_; }

  // Memory at an address for a lane; bytes is also the alignment.
  const char* read_shared(uint64_t address, int64_t bytes, int lane);
  void write_shared(uint64_t address, int64_t bytes, int lane, const void* from);
  const char* read(uint64_t address, int64_t bytes, int lane);  // global or shared
  void write(uint64_t address, int64_t bytes, int lane, const void* from);
  char* atomic(uint64_t address, int64_t bytes, int lane, bool shared);

  // Asynchronous copies arrive when they are waited for.
  struct Copy {
    int lane;
    uint64_t to;
    const char* from;
    int bytes, given;
  };
  std::vector<Copy> copies;
  std::vector<std::vector<Copy>> groups;
  void arrive(size_t groups_left);

  // And so do the products of a warp group: nothing is read or written before.
  struct Product {
    const Instruction* instruction;
    uint64_t a, b;  // descriptors, the first if it is no matrix in registers
    bool adds;
  };
  std::vector<Product> products;
  std::vector<std::vector<Product>> product_groups;

 private:
  struct Place {
    int at;
    uint32_t lanes;
    bool waits;
  };
  void step(size_t place);
  // The memory, once the access is known to be one that a GPU makes.
  char* shared(uint64_t address, int64_t bytes, int lane, Access access,
               const void* written = nullptr);
  char* global(uint64_t address, int64_t bytes, int lane, Access access,
               const void* written = nullptr);
  size_t furthest_behind() const;
  uint32_t alive() const;

  Block& block_;
  int index_, syncs_ = 0, line_ = 0;
  bool at_barrier_ = false;
  std::vector<Place> places_;
  std::vector<Lanes> registers_;
};

class Block {
 public:
  Block(const Launch& launch, int64_t index, GlobalTouches& global, std::mt19937& random);
  void run();
  // Lets a clock run beside the block, whose report is there when it has run.
  void start_clock();
  std::string report() const { return clock_->report(number_); }
  Clock* clock() { return clock_.get(); }

  const Launch& launch() const { return launch_; }
  Size index() const { return index_; }
  std::span<char> memory() { return memory_; }
  // Records that a thread touches memory; throws where two threads race. Those that write what is
  // there already do not: a value held by several threads is stored by all of them.
  void touch(Touched& touched, int64_t first, int64_t bytes, const Warp& warp, int lane,
             Access access, bool changes);
  Touched& shared_touches() { return touched_; }
  GlobalTouches& global_touches() { return global_; }

 private:
  const Launch& launch_;
  int number_;  // among the launch's blocks
  Size index_;
  GlobalTouches& global_;
  std::mt19937& random_;
  std::vector<char> storage_;
  std::span<char> memory_;
  Touched touched_;
  int barrier_ = 0;
  std::vector<Warp> warps_;
  std::unique_ptr<Clock> clock_;
};

// Runs all blocks, in random order; the reports of a clock go to the end of a file that has a name.
void run(const Launch& launch, uint64_t seed, const std::string& clock_file);

template <typename F>
void each(uint32_t lanes, const F& f) {
  if (lanes == 0xFFFFFFFF) {
    for (int lane = 0; lane < kLanes; ++lane) f(lane);
  } else {
    for (; lanes != 0; lanes &= lanes - 1) f(std::countr_zero(lanes));
  }
}

}  // namespace ptx
