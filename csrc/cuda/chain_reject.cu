#include <torch/csrc/stable/library.h>

#include "common/chain_arguments.h"
#include "cuda/group.cuh"
#include "cuda/launch.cuh"

namespace dspark {
namespace {

// The slices of all rows keep a GPU busy, those of one row need more threads each.
constexpr int kThreads = 128, kDrawThreads = 512, kFinishThreads = 256;
constexpr int kUnit = 2048;  // logits of a slice
using Group = BlockGroup<kThreads>;
using DrawGroup = BlockGroup<kDrawThreads>;
using FinishGroup = BlockGroup<kFinishThreads>;

// A slice of a request per column of blocks, a row per row of blocks.
template <typename T>
__global__ __launch_bounds__(kThreads) void chain_stats_kernel(
    const __grid_constant__ SlicedChain p) {
  __shared__ Group::Scratch group_scratch;
  Group group(group_scratch);
  const int slices = p.slices.count;
  chain_stats<Group, T>(group, p, blockIdx.x / slices, blockIdx.y, blockIdx.x % slices);
}

template <typename T>
__global__ __launch_bounds__(kDrawThreads,
                             1) void chain_draw_kernel(const __grid_constant__ SlicedChain p) {
  __shared__ DrawGroup::Scratch group_scratch;
  __shared__ ChainScratch scratch;
  DrawGroup group(group_scratch);
  const int slices = p.slices.count;
  chain_draw<DrawGroup, T>(group, p, blockIdx.x / slices, blockIdx.x % slices, scratch);
}

template <typename T>
__global__ __launch_bounds__(kFinishThreads) void chain_finish_kernel(
    const __grid_constant__ SlicedChain p) {
  __shared__ FinishGroup::Scratch group_scratch;
  FinishGroup group(group_scratch);
  chain_finish<FinishGroup, T>(group, p, blockIdx.x);
}

std::tuple<Tensor, Tensor> chain_reject(Tensor draft_tokens, Tensor draft_logits,
                                        Tensor target_logits, Tensor temperature, Tensor seed,
                                        Tensor position) {
  constexpr const char* kOp = "chain_reject";
  check_device(kOp, {draft_tokens, draft_logits, target_logits, temperature, seed, position});
  const CurrentDevice device(draft_tokens, kOp);
  ChainArguments arguments(draft_tokens, draft_logits, target_logits, temperature, seed, position,
                           kOp);
  if (arguments.batch == 0) return arguments.outputs();
  const SlicedChain view = arguments.sliced(kUnit);
  const auto batch = static_cast<unsigned>(arguments.batch), slices = batch * view.slices.count;
  const dim3 rows(slices, static_cast<unsigned>(2 * view.chain.length + 1));
  with_type(view.chain.dtype, [&](auto type) {
    using T = decltype(type);
    chain_stats_kernel<T><<<rows, kThreads, 0, device.stream>>>(view);
    check_cuda(cudaGetLastError(), kOp);
    chain_draw_kernel<T><<<slices, kDrawThreads, 0, device.stream>>>(view);
    check_cuda(cudaGetLastError(), kOp);
    chain_finish_kernel<T><<<batch, kFinishThreads, 0, device.stream>>>(view);
    check_cuda(cudaGetLastError(), kOp);
  });
  return arguments.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CUDA, m) { m.impl("chain_reject", TORCH_BOX(&chain_reject)); }

}  // namespace dspark
