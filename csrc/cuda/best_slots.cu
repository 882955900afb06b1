#include <torch/csrc/stable/library.h>

#include "common/best_slots_arguments.h"
#include "cuda/group.cuh"
#include "cuda/launch.cuh"

namespace dspark {
namespace {

constexpr int kThreads = 1024;
using Group = BlockGroup<kThreads>;

// All requests in one block: they share the pass.
__global__ __launch_bounds__(kThreads) void best_slots_kernel(const __grid_constant__ BestSlots p) {
  __shared__ SelectScratch scratch;
  __shared__ Group::Scratch group_scratch;
  Group group(group_scratch);
  choose_slots(group, p, scratch);
}

SlotTensors best_slots(Tensor scores, Tensor num_nodes, Tensor lengths, Tensor limit, Tensor done,
                       int64_t nodes, int64_t total) {
  constexpr const char* kOp = "best_slots";
  check_device(kOp, {scores, num_nodes, lengths, limit, done});
  const CurrentDevice device(scores, kOp);
  const BestSlotsArguments arguments(scores, num_nodes, lengths, limit, done, nodes, total, kOp);
  best_slots_kernel<<<1, kThreads, 0, device.stream>>>(arguments.view);
  check_cuda(cudaGetLastError(), kOp);
  return arguments.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CUDA, m) { m.impl("best_slots", TORCH_BOX(&best_slots)); }

}  // namespace dspark
