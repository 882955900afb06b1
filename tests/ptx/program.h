// PTX text as instructions whose operands are numbers of registers.

#pragma once

#include <stdint.h>

#include <algorithm>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace ptx {

class Warp;
struct Instruction;
// Runs an instruction for the lanes of a warp.
using Handler = void (*)(Warp&, const Instruction&, uint32_t lanes);

struct Operand {
  int count = 0;       // of registers: several for {a, b}, and for a|b
  int64_t offset = 0;  // of [a + offset]
};

enum class Flow : uint8_t { kNext, kBranch, kExit, kBarrier, kWarpSync };

struct Instruction {
  Handler run = nullptr;
  Flow flow = Flow::kNext;
  int guard = -1;  // the register of its predicate
  bool unless = false;
  int target = -1;     // of a branch
  std::vector<int> r;  // the registers of all operands, in their order
  std::vector<Operand> operands;
  const std::vector<std::string>* parts = nullptr;  // of its name: "ld", "global", "v2", "u32"
  int line = 0;
  int source = -1;  // where it comes from, if that is known

  const std::string& name() const { return parts->front(); }
  const std::string& part(int i) const { return parts->at(i < 0 ? parts->size() + i : i); }
  bool has(std::string_view part) const {
    return std::find(parts->begin(), parts->end(), part) != parts->end();
  }
};

enum class Special {
  kThreadX,
  kThreadY,
  kThreadZ,
  kBlockX,
  kBlockY,
  kBlockZ,
  kThreadsX,
  kThreadsY,
  kThreadsZ,
  kBlocksX,
  kBlocksY,
  kBlocksZ,
  kLane,
  kWarp
};

struct Parameter {
  int64_t offset, bytes;
};

struct Source {
  int file, line;
  int inlined_at;  // another one, or -1
};

struct Function {
  std::string name;
  std::vector<Parameter> parameters;
  int64_t parameter_bytes = 0;
  int64_t shared_bytes = 0;  // of its variables; what a launch asks for comes behind them
  int64_t max_threads = 1024, exact_threads = 0;
  int num_registers = 0;
  std::vector<std::pair<int, uint64_t>> constants;  // registers of numbers and addresses
  std::vector<std::pair<int, Special>> specials;
  std::vector<Instruction> code;
  // Of the whole module, if nvcc was called with -lineinfo.
  std::shared_ptr<const std::vector<Source>> sources;
  std::shared_ptr<const std::map<int, std::string>> files;
};

// The functions of a module; throws std::runtime_error for what is not known.
std::map<std::string, Function> parse(const std::string& text);

// Finds the handler and the flow of an instruction from its name and operands.
void decode(Instruction& instruction);

}  // namespace ptx
