#include "cpu/typical_accept.h"

#include <torch/csrc/stable/library.h>

#include "common/typical_arguments.h"
#include "cpu/compact.h"
#include "cpu/parallel.h"

namespace dspark {
namespace {

WalkTensors typical_accept(Tensor tokens, Tensor parents, Tensor num_nodes, Tensor target_tokens,
                           Tensor logits, std::optional<Tensor> temperature, double epsilon,
                           double delta, std::vector<Tensor> caches, Tensor cache_seqlens,
                           std::optional<Tensor> block_table, int64_t max_depth) {
  const Walks walks(tokens, parents, num_nodes, target_tokens, max_depth, "typical_accept");
  const Caches moved(walks.batch, caches, cache_seqlens, block_table, "typical_accept");
  const TypicalArguments arguments(walks, logits, temperature, epsilon, delta, "typical_accept");
  parallel_tasks(walks.batch, [&](int64_t b) {
    DSPARK_CALL_CPU_KERNEL(typical_accept_request, arguments.view, b);
  });
  compact_caches(walks.view, walks.batch, moved);
  return walks.tensors();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("typical_accept", TORCH_BOX(&typical_accept)); }

}  // namespace dspark
