#include <torch/csrc/stable/library.h>

#include "common/typical_arguments.h"
#include "cuda/compact.cuh"

namespace dspark {
namespace {

constexpr int kThreads = 1024;
using Group = BlockGroup<kThreads>;

// One request per block.
template <typename T>
__global__ __launch_bounds__(kThreads) void typical_accept_kernel(
    const __grid_constant__ TypicalAccept p) {
  __shared__ TypicalScratch scratch;
  __shared__ Group::Scratch group_scratch;
  __shared__ int32_t path[kMaxNodes];
  Group group(group_scratch);
  typical_accept_request<Group, T>(group, p, blockIdx.x, scratch, path);
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
  const TypicalArguments arguments(walks, logits, temperature, epsilon, delta, kOp);
  if (walks.batch == 0) return walks.tensors();
  with_type(arguments.view.dtype, [&](auto type) {
    const auto blocks = static_cast<unsigned>(walks.batch);
    typical_accept_kernel<decltype(type)><<<blocks, kThreads, 0, device.stream>>>(arguments.view);
    check_cuda(cudaGetLastError(), kOp);
  });
  compact_on_device<false>(walks.view, walks.batch, moved, device.stream, kOp);
  return walks.tensors();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CUDA, m) { m.impl("typical_accept", TORCH_BOX(&typical_accept)); }

}  // namespace dspark
