#include "cpu/typical_accept.h"

#include <torch/csrc/stable/library.h>

#include "cpu/serial_group.h"
#include "cpu/walk.h"

namespace dspark {
namespace {

WalkTensors typical_accept(Tensor tokens, Tensor parents, Tensor num_nodes, Tensor target_tokens,
                           Tensor logits, std::optional<Tensor> temperature, double epsilon,
                           double delta, std::vector<Tensor> caches, Tensor cache_seqlens,
                           std::optional<Tensor> block_table, int64_t max_depth) {
  constexpr const char* kOp = "typical_accept";
  const Walks walks(tokens, parents, num_nodes, target_tokens, max_depth, kOp);
  const DType dtype = float_dtype(logits, kOp, "logits");
  check_shape(logits, {walks.batch, walks.nodes, -1}, kOp, "logits", "have shape [B, N, V]");
  const Tensor rows = with_contiguous_rows(logits);
  const Optional tau(temperature, ScalarType::Float, {walks.batch}, kOp, "temperature");
  const TypicalOptions options{static_cast<float>(epsilon), static_cast<float>(delta),
                               walks.depth_limit()};
  parallel_tasks(walks.batch, [&](int64_t, int64_t b) {
    const float temperature_b = tau.data<float>() ? tau.data<float>()[b] : 1.0f;
    const char* row = static_cast<const char*>(rows.const_data_ptr());
    const TypicalRequest request{
        walks.tree(b),  dtype,        row + b * rows.stride(0) * rows.element_size(),
        rows.stride(1), rows.size(2), temperature_b > 0 ? temperature_b : 1.0f};
    const WalkOutputs out = walks.outputs(b);
    const int count = DSPARK_CALL_CPU_KERNEL(typical_accept_walk, request, options, out.path);
    SerialGroup group;
    write_walk(group, request.tree, walks.target(b), max_depth, out.path, count, out);
  });
  compact_caches(walks, caches, cache_seqlens, block_table, kOp);
  return walks.tensors();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("typical_accept", TORCH_BOX(&typical_accept)); }

}  // namespace dspark
