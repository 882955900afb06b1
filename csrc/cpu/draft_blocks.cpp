#include "cpu/draft_blocks.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "common/launch.h"
#include "cpu/parallel.h"

namespace dspark {
namespace {

constexpr const char* kOp = "draft_blocks";

Tensor draft_blocks(Tensor hidden, Tensor weight, Tensor bias, std::optional<Tensor> features,
                    std::optional<Tensor> residual_scale) {
  DraftBlocks p{};
  const ScalarType dtype = hidden.scalar_type();
  p.dtype = float_dtype(hidden, kOp, "hidden");
  check_dtype(weight, dtype, kOp, "weight");
  check_dtype(bias, dtype, kOp, "bias");
  check_shape(hidden, {-1, -1}, kOp, "hidden", "have shape [B, D]");
  p.rows = hidden.size(0), p.dim = hidden.size(1);
  check_shape(weight, {-1, p.dim, -1}, kOp, "weight", "have shape [H, D, F]");
  p.heads = weight.size(0), p.depth = weight.size(2);
  check_shape(bias, {p.heads, p.dim}, kOp, "bias", "have shape [H, D]");
  const Tensor source = with_contiguous_rows(features ? *features : hidden);
  check_dtype(source, dtype, kOp, "features");
  check_shape(source, {p.rows, p.depth}, kOp, "features", "have shape [B, F]");
  const Optional scale_(residual_scale, dtype, {p.heads, p.dim}, kOp, "residual_scale",
                        "have shape [H, D]");

  const Tensor hidden_rows = with_contiguous_rows(hidden);
  const Tensor weights = torch::stable::contiguous(weight),
               biases = torch::stable::contiguous(bias);
  p.hidden = hidden_rows.const_data_ptr(), p.hidden_stride = hidden_rows.stride(0);
  p.features = source.const_data_ptr(), p.features_stride = source.stride(0);
  p.weight = weights.const_data_ptr(), p.bias = biases.const_data_ptr();
  p.residual_scale = scale_.data<void>();

  Tensor out = empty({p.rows, p.heads, p.dim}, dtype);
  if (out.numel() == 0) return out;
  const auto sizes = DSPARK_CALL_CPU_KERNEL(draft_blocks_sizes, p);
  const int64_t columns = p.heads * p.dim;
  p.task_rows = columns_per_task(columns, sizes.tile);
  const Tensor packed = empty({sizes.packed_floats}, ScalarType::Float);
  p.packed = packed.mutable_data_ptr<float>();
  p.out = out.mutable_data_ptr();
  DSPARK_CALL_CPU_KERNEL(draft_blocks_pack, p);
  parallel_runs((columns + p.task_rows - 1) / p.task_rows,
                [&](int64_t task) { DSPARK_CALL_CPU_KERNEL(draft_blocks_task, p, task); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("draft_blocks", TORCH_BOX(&draft_blocks)); }

}  // namespace dspark
