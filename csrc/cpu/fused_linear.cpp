#include "cpu/fused_linear.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <vector>

#include "common/launch.h"
#include "cpu/parallel.h"

namespace dspark {
namespace {

constexpr const char* kOp = "fused_linear";

std::vector<Tensor> fused_linear(Tensor x, std::vector<Tensor> weights, std::vector<Tensor> biases,
                                 bool gated, std::optional<Tensor> residual,
                                 std::optional<Tensor> norm_weight, double eps) {
  FusedLinear p{};
  const ScalarType dtype = x.scalar_type();
  p.dtype = float_dtype(x, kOp, "x");
  check_shape(x, {-1, -1}, kOp, "x", "have shape [M, D]");
  p.rows = x.size(0), p.depth = x.size(1), p.eps = static_cast<float>(eps), p.gated = gated;
  p.weights = static_cast<int>(weights.size());
  check(p.weights >= 1 && p.weights <= kMaxWeights, kOp, "weights", "hold 1 to 4 tensors",
        p.weights);
  check(!gated || p.weights == 2, kOp, "weights", "hold 2 tensors if gated", p.weights);
  check(biases.empty() || biases.size() == weights.size(), kOp, "biases",
        "be empty or hold a tensor per weight", biases.size());
  for (int i = 0; i < p.weights; ++i) {
    check_dtype(weights[i], dtype, kOp, "weights");
    check_shape(weights[i], {gated ? weights[0].size(0) : -1, p.depth}, kOp, "weights",
                "have shape [N, D]");
    weights[i] = with_contiguous_rows(weights[i]);
    p.weight[i] = weights[i].const_data_ptr(), p.weight_stride[i] = weights[i].stride(0);
    p.columns[i] = weights[i].size(0);
    if (i < p.parts()) p.width += p.columns[i];
    if (biases.empty()) continue;
    biases[i] = whole(biases[i], dtype, {p.columns[i]}, kOp, "biases", "have shape [N]");
    p.bias[i] = biases[i].const_data_ptr();
  }
  const Tensor x_rows = with_contiguous_rows(x);
  p.x = x_rows.const_data_ptr(), p.x_stride = x_rows.stride(0);
  Tensor added = x_rows;  // keeps the rows of the residual alive
  if (residual) {
    added = with_contiguous_rows(*residual);
    check_dtype(added, dtype, kOp, "residual");
    check_shape(added, {p.rows, p.width}, kOp, "residual", "have shape [M, width of the output]");
    p.residual = added.const_data_ptr(), p.residual_stride = added.stride(0);
  }

  const Optional norm_(norm_weight, dtype, {p.width}, kOp, "norm_weight",
                       "have shape [width of the output]");
  p.norm_weight = norm_.data<void>();

  std::vector<Tensor> outputs(norm_weight ? 2 : 1);
  for (Tensor& output : outputs) output = empty({p.rows, p.width}, dtype);
  if (outputs[0].numel() == 0) return outputs;
  const auto sizes = DSPARK_CALL_CPU_KERNEL(fused_linear_sizes, p);
  p.task_columns = columns_per_task(p.width, sizes.tile);
  const Tensor packed = empty({sizes.packed_floats}, ScalarType::Float);
  p.packed = packed.mutable_data_ptr<float>();
  p.out = outputs[0].mutable_data_ptr(), p.normed = outputs.back().mutable_data_ptr();
  parallel_tasks(sizes.groups,
                 [&](int64_t group) { DSPARK_CALL_CPU_KERNEL(fused_linear_pack, p, group); });
  for (int part = 0; part < p.parts(); ++part) p.group_tasks += p.tasks(part);
  parallel_runs(sizes.groups * p.group_tasks,
                [&](int64_t task) { DSPARK_CALL_CPU_KERNEL(fused_linear_task, p, task); });
  if (p.norm_weight != nullptr) {
    parallel_tasks((p.rows + kNormRows - 1) / kNormRows,
                   [&](int64_t task) { DSPARK_CALL_CPU_KERNEL(fused_linear_norm, p, task); });
  }
  return outputs;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("fused_linear", TORCH_BOX(&fused_linear)); }

}  // namespace dspark
