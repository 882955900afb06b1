// A warp on one CPU thread: every lane is a fiber that runs until its next collective, then the
// next lane does. Which lane comes first is drawn anew at every barrier. Memory accesses are
// watched: two lanes that touch the same bytes between two barriers, one of them writing, are a
// race, as are two writers, unless all of them are atomic.

#pragma once

#include <stdint.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace lockstep {

enum class Access : uint8_t { kRead, kWrite, kAtomic };

class Machine {
 public:
  Machine(int lanes, int team_size, uint64_t seed);

  // Runs body(lane) for all lanes; returns what was wrong, empty if nothing.
  std::string run(const std::function<void(int)>& body);

  int lanes() const { return lanes_; }
  int team_size() const { return team_size_; }

  // Called by a lane: waits for all lanes (team < 0) or those of a team. All must name the same
  // collective. Only the barrier of all orders memory.
  void wait(int lane, int team, const char* collective);
  // A collective of values: waits, then copies those of all lanes (or of the team) to `all`.
  void exchange(int lane, int team, const char* collective, uint64_t value, uint64_t* all);
  int add(int lane, int* counter, int value);
  void lower(int lane, int* counter, int value);
  void set_bits(int lane, uint32_t* word, uint32_t bits);

  // Called for every access of the lane that runs.
  static void record(const void* address, unsigned bytes, Access access);

 private:
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool runnable = true, done = false;
  };
  struct Barrier {
    int members = 0, arrived = 0;
    const char* collective = nullptr;
  };
  static constexpr int8_t kNone = -1, kMany = 127;
  struct Byte {  // the lanes that touched it since the last barrier
    int8_t reader = kNone, writer = kNone, atomic = kNone;
  };
  struct Cell {
    uintptr_t word = 0;
    uint64_t epoch = 0;
    Byte bytes[4];
  };

  static void enter(unsigned high, unsigned low);
  void fail(std::string what);
  Cell& cell(uintptr_t word);
  void touch(Byte& byte, Access access);
  uint64_t random();

  int lanes_, team_size_, current_ = -1, barrier_ = 0;
  uint64_t state_;
  std::vector<Fiber> fibers_;
  std::vector<Barrier> barriers_;      // of all, then of every team
  std::vector<uint64_t> slots_[2][2];  // of all or a team; two sets take turns
  std::vector<int> turns_[2];
  const std::function<void(int)>* body_ = nullptr;
  ucontext_t scheduler_;
  std::string wrong_;
};

}  // namespace lockstep
