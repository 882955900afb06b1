// How long a block takes by a model of latencies: no measurement, but it tells what a kernel waits
// for, where there is no GPU. PTX_CLOCK=FILE tests/run_ptx.sh ... appends a report of every block,
// by lines of PTX; by those of its source if that was compiled with NVCC_APPEND_FLAGS=-lineinfo.
//
// Between two barriers an instruction starts when its operands are there, in any order up to the
// next branch, which all of them come before; a phase lasts as long as the longest such chain of
// any warp, or as the busiest pipe. What runs for the first time is fetched, eight instructions at
// a time.

#pragma once

#include <array>
#include <memory>
#include <span>
#include <string>

#include "program.h"

namespace ptx {

class Warp;

class Clock {
 public:
  Clock(const Function& function, int warps, std::span<char> shared_memory);
  ~Clock();

  // An instruction runs, or with a branch or a barrier the ones before it have.
  void issue(Warp& warp, int at, uint32_t lanes);
  void end_chain(const Warp& warp, int at);
  // All warps have come to the barrier at this instruction, or to their end: -1.
  void end_phase(int at);
  // The phases, and where their longest chains spent their time.
  std::string report(int block) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ptx
