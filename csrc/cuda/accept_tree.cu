#include <torch/csrc/stable/library.h>

#include "cuda/compact.cuh"

namespace dspark {
namespace {

WalkTensors accept_tree(Tensor tokens, Tensor parents, Tensor num_nodes, Tensor target_tokens,
                        std::vector<Tensor> caches, Tensor cache_seqlens,
                        std::optional<Tensor> block_table, int64_t max_depth) {
  constexpr const char* kOp = "accept_tree";
  check_device(kOp, {tokens, parents, num_nodes, target_tokens, cache_seqlens, block_table});
  for (const Tensor& cache : caches) check_device(kOp, {tokens, cache});
  const CurrentDevice device(tokens, kOp);
  const Walks walks(tokens, parents, num_nodes, target_tokens, max_depth, kOp);
  const Caches moved(walks.batch, caches, cache_seqlens, block_table, kOp);
  if (walks.batch > 0) {
    compact_on_device<true>(walks.view, walks.batch, moved, device.stream, kOp);
  }
  return walks.tensors();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CUDA, m) { m.impl("accept_tree", TORCH_BOX(&accept_tree)); }

}  // namespace dspark
