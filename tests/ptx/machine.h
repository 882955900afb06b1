// A block of threads that runs a function. Warps take turns of random length. Lanes of a warp may
// be at different places; those furthest behind run first, so that they meet again.

#pragma once

#include <array>
#include <bit>
#include <random>
#include <span>

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
};

// Who touched a byte of shared memory since a barrier of the block, and one of the warp.
struct Touch {
  static constexpr int kMany = -1;
  int thread = kMany, warp = kMany;
  int barrier = -1, sync = -1;
};

enum class Access { kRead, kWrite, kAtomic };

class Block;

class Warp {
 public:
  Warp(Block& block, int index);

  // Runs some instructions; throws std::runtime_error for what a GPU would not do, or not reliably.
  void run(int instructions);
  bool done() const { return places_.empty(); }
  bool at_barrier() const { return at_barrier_; }
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
  int64_t offset_in_shared(uint64_t address, int64_t bytes) const;
  char* global(uint64_t address, int64_t bytes) const;
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
  Block(const Launch& launch, Size index, std::mt19937& random);
  void run();

  const Launch& launch() const { return launch_; }
  Size index() const { return index_; }
  std::span<char> memory() { return memory_; }
  // Records that a thread touches shared memory; throws where two threads race. Those that write
  // what is there already do not: a value held by several threads is stored by all of them.
  void touch(int64_t offset, int64_t bytes, const Warp& warp, int lane, Access access,
             bool changes = true);

 private:
  const Launch& launch_;
  Size index_;
  std::mt19937& random_;
  std::vector<char> storage_;
  std::span<char> memory_;
  struct Byte {
    Touch reader, writer, atomic;
  };
  std::vector<Byte> touched_;
  int barrier_ = 0;
  std::vector<Warp> warps_;
};

// Runs all blocks, in random order.
void run(const Launch& launch, uint64_t seed);

template <typename F>
void each(uint32_t lanes, const F& f) {
  if (lanes == 0xFFFFFFFF) {
    for (int lane = 0; lane < kLanes; ++lane) f(lane);
  } else {
    for (; lanes != 0; lanes &= lanes - 1) f(std::countr_zero(lanes));
  }
}

}  // namespace ptx
