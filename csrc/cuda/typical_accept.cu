#include <torch/csrc/stable/library.h>

#include "common/typical_arguments.h"
#include "cuda/compact.cuh"

namespace dspark {
namespace {

constexpr int kThreads = 128, kUnit = 16 * kThreads;  // logits of a slice
constexpr int kWalkThreads = 256;
using Group = BlockGroup<kThreads>;
using WalkGroup = BlockGroup<kWalkThreads>;

// A slice of a request per column of blocks, a node per row of blocks.
template <typename T>
__global__ __launch_bounds__(kThreads) void typical_stats_kernel(
    const __grid_constant__ SlicedTypical p) {
  __shared__ Group::Scratch group_scratch;
  Group group(group_scratch);
  const int slices = p.slices.count;
  typical_stats<Group, T>(group, p, blockIdx.x / slices, blockIdx.y, blockIdx.x % slices);
}

// One request per block.
template <typename T>
__global__ __launch_bounds__(kWalkThreads, 1) void typical_finish_kernel(
    const __grid_constant__ SlicedTypical p) {
  __shared__ WalkGroup::Scratch group_scratch;
  __shared__ TypicalScratch scratch;
  __shared__ RowStats stats[kMaxNodes];
  __shared__ int32_t path[kMaxNodes];
  WalkGroup group(group_scratch);
  typical_finish<WalkGroup, T>(group, p, blockIdx.x, scratch, stats, path);
}

WalkTensors typical_accept(Tensor tokens, Tensor parents, Tensor num_nodes, Tensor target_tokens,
                           Tensor logits, std::optional<Tensor> temperature, double epsilon,
                           double delta, std::vector<Tensor> caches, Tensor cache_seqlens,
                           std::optional<Tensor> block_table, int64_t max_depth) {
  constexpr const char* kOp = "typical_accept";
  check_device(kOp, {tokens, parents, num_nodes, target_tokens, logits, temperature, cache_seqlens,
                     block_table});
  for (const Tensor& cache : caches) check_device(kOp, {tokens, cache});
  const CurrentDevice device(tokens, kOp);
  const Walks walks(tokens, parents, num_nodes, target_tokens, max_depth, kOp);
  const Caches moved(walks.batch, caches, cache_seqlens, block_table, kOp);
  TypicalArguments arguments(walks, logits, temperature, epsilon, delta, kOp);
  if (walks.batch == 0) return walks.tensors();
  const SlicedTypical view = arguments.sliced(walks, kUnit);
  const auto batch = static_cast<unsigned>(walks.batch);
  const dim3 rows(batch * view.slices.count, static_cast<unsigned>(walks.nodes));
  with_type(view.typical.dtype, [&](auto type) {
    using T = decltype(type);
    typical_stats_kernel<T><<<rows, kThreads, 0, device.stream>>>(view);
    check_cuda(cudaGetLastError(), kOp);
    typical_finish_kernel<T><<<batch, kWalkThreads, 0, device.stream>>>(view);
    check_cuda(cudaGetLastError(), kOp);
  });
  compact_on_device<false>(walks.view, walks.batch, moved, device.stream, kOp);
  return walks.tensors();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CUDA, m) { m.impl("typical_accept", TORCH_BOX(&typical_accept)); }

}  // namespace dspark
