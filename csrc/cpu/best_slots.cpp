#include <torch/csrc/stable/library.h>

#include "common/best_slots_arguments.h"
#include "cpu/serial_group.h"

namespace dspark {
namespace {

SlotTensors best_slots(Tensor scores, Tensor num_nodes, Tensor lengths, Tensor limit, Tensor done,
                       int64_t nodes, int64_t total) {
  const BestSlotsArguments arguments(scores, num_nodes, lengths, limit, done, nodes, total,
                                     "best_slots");
  SerialGroup group;
  SelectScratch scratch;
  choose_slots(group, arguments.view, scratch);
  return arguments.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("best_slots", TORCH_BOX(&best_slots)); }

}  // namespace dspark
