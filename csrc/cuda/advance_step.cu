#include <torch/csrc/stable/library.h>

#include "common/advance_arguments.h"
#include "cuda/group.cuh"
#include "cuda/launch.cuh"

namespace dspark {
namespace {

constexpr int kThreads = 256;
using Group = BlockGroup<kThreads>;

// One request per block.
__global__ __launch_bounds__(kThreads) void advance_step_kernel(
    const __grid_constant__ AdvanceStep p) {
  __shared__ Group::Scratch group_scratch;
  Group group(group_scratch);
  advance_request(group, p, blockIdx.x);
}

Tensor advance_step(Tensor tokens, Tensor num_tokens, Tensor node, std::optional<Tensor> rows,
                    std::vector<Tensor> hidden, Tensor stop, Tensor limit, Tensor history,
                    Tensor lengths, Tensor cache_seqlens, Tensor root, Tensor done,
                    std::vector<Tensor> kept) {
  constexpr const char* kOp = "advance_step";
  check_device(kOp, {tokens, num_tokens, node, rows, stop, limit, history, lengths, cache_seqlens,
                     root, done});
  for (const Tensor& tensor : hidden) check_device(kOp, {tokens, tensor});
  for (const Tensor& tensor : kept) check_device(kOp, {tokens, tensor});
  const CurrentDevice device(tokens, kOp);
  const AdvanceArguments arguments(tokens, num_tokens, node, rows, hidden, stop, limit, history,
                                   lengths, cache_seqlens, root, done, kept, kOp);
  if (arguments.batch > 0) {
    advance_step_kernel<<<static_cast<unsigned>(arguments.batch), kThreads, 0, device.stream>>>(
        arguments.view);
    check_cuda(cudaGetLastError(), kOp);
  }
  return arguments.output();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CUDA, m) { m.impl("advance_step", TORCH_BOX(&advance_step)); }

}  // namespace dspark
