#include <torch/csrc/stable/library.h>

#include "common/chain_arguments.h"
#include "cuda/group.cuh"
#include "cuda/launch.cuh"

namespace dspark {
namespace {

constexpr int kThreads = 1024;
using Group = BlockGroup<kThreads>;

// One request per block.
template <typename T>
__global__ __launch_bounds__(kThreads) void chain_reject_kernel(
    const __grid_constant__ ChainReject p) {
  __shared__ Group::Scratch group_scratch;
  Group group(group_scratch);
  chain_reject_request<Group, T>(group, p, blockIdx.x);
}

std::tuple<Tensor, Tensor> chain_reject(Tensor draft_tokens, Tensor draft_logits,
                                        Tensor target_logits, Tensor temperature, Tensor seed,
                                        Tensor position) {
  constexpr const char* kOp = "chain_reject";
  check_device(kOp, {draft_tokens, draft_logits, target_logits, temperature, seed, position});
  const CurrentDevice device(draft_tokens, kOp);
  const ChainArguments arguments(draft_tokens, draft_logits, target_logits, temperature, seed,
                                 position, kOp);
  if (arguments.batch == 0) return arguments.outputs();
  with_type(arguments.view.dtype, [&](auto type) {
    const auto blocks = static_cast<unsigned>(arguments.batch);
    chain_reject_kernel<decltype(type)><<<blocks, kThreads, 0, device.stream>>>(arguments.view);
    check_cuda(cudaGetLastError(), kOp);
  });
  return arguments.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CUDA, m) { m.impl("chain_reject", TORCH_BOX(&chain_reject)); }

}  // namespace dspark
