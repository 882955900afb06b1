#include <torch/csrc/stable/library.h>

#include "cpu/compact.h"
#include "cpu/serial_group.h"

namespace dspark {
namespace {

WalkTensors accept_tree(Tensor tokens, Tensor parents, Tensor num_nodes, Tensor target_tokens,
                        std::vector<Tensor> caches, Tensor cache_seqlens,
                        std::optional<Tensor> block_table, int64_t max_depth) {
  constexpr const char* kOp = "accept_tree";
  const Walks walks(tokens, parents, num_nodes, target_tokens, max_depth, kOp);
  const Caches moved(walks.batch, caches, cache_seqlens, block_table, kOp);
  for (int64_t b = 0; b < walks.batch; ++b) {
    SerialGroup group;
    int next[kMaxNodes];
    const TreeView tree = walks.view.tree(b);
    const int64_t* target = walks.view.target + b * walks.nodes;
    const WalkOutputs out = walks.view.outputs(b);
    const int count = accept_walk(group, tree, target, walks.view.depth_limit(), next, out.path);
    write_walk(group, tree, target, walks.view.max_depth, out.path, count, out);
  }
  compact_caches(walks.view, walks.batch, moved);
  return walks.tensors();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("accept_tree", TORCH_BOX(&accept_tree)); }

}  // namespace dspark
