#include "cpu/sample_logits.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <optional>

#include "common/launch.h"
#include "cpu/parallel.h"
#include "cpu/per_row.h"

namespace dspark {
namespace {

constexpr const char* kOp = "sample_logits";

Tensor sample_logits(Tensor logits, std::optional<Tensor> ids, std::optional<Tensor> temperature,
                     std::optional<Tensor> seed, std::optional<Tensor> position,
                     std::optional<Tensor> top_k, std::optional<Tensor> top_p,
                     std::optional<Tensor> min_p, std::optional<Tensor> seen,
                     std::optional<Tensor> repetition_penalty) {
  SampleLogits p{};
  p.dtype = float_dtype(logits, kOp, "logits");
  check_shape(logits, {-1, -1}, kOp, "logits", "have shape [M, V]");
  p.rows = logits.size(0), p.vocab = logits.size(1);
  check(p.vocab > 0 && p.vocab < std::numeric_limits<int32_t>::max() - 64, kOp, "logits",
        "have 1 to 2^31 columns", p.vocab);
  check(!temperature || (seed && position), kOp, "seed and position", "come with temperature",
        "none");
  const Tensor rows = with_contiguous_rows(logits);
  const Optional ids_(ids, ScalarType::Long, {p.rows, p.vocab}, kOp, "ids", "have shape [M, V]");
  const PerRow<float> temperature_(temperature, ScalarType::Float, p.rows, kOp, "temperature");
  const PerRow<int64_t> seed_(seed, ScalarType::Long, p.rows, kOp, "seed");
  const Optional position_(position, ScalarType::Long, {p.rows}, kOp, "position", "have shape [M]");
  const PerRow<int32_t> top_k_(top_k, ScalarType::Int, p.rows, kOp, "top_k");
  const PerRow<float> top_p_(top_p, ScalarType::Float, p.rows, kOp, "top_p");
  const PerRow<float> min_p_(min_p, ScalarType::Float, p.rows, kOp, "min_p");
  const PenaltyArguments penalty_(seen, repetition_penalty, p.rows, kOp);
  check(!seen || !ids, kOp, "seen", "be left out with ids", "both");
  p.penalty = penalty_.view;
  p.logits = rows.const_data_ptr(), p.stride = rows.stride(0), p.ids = ids_.data<int64_t>();
  p.temperature = temperature_.data(), p.seed = seed_.data();
  p.position = position_.data<int64_t>(), p.top_k = top_k_.data();
  p.top_p = top_p_.data(), p.min_p = min_p_.data();

  Tensor drawn = empty({p.rows}, ScalarType::Long);
  int64_t* out = drawn.mutable_data_ptr<int64_t>();
  const int64_t floats = DSPARK_CALL_CPU_KERNEL(sample_logits_floats, p);
  const int64_t workers = num_workers(p.rows);
  const Tensor memory = empty({workers, floats}, ScalarType::Float);
  float* scratch = memory.mutable_data_ptr<float>();
  parallel_tasks(p.rows, workers, [&](int64_t worker, int64_t row) {
    out[row] = DSPARK_CALL_CPU_KERNEL(sample_logits_row, p, row, scratch + worker * floats);
  });
  return drawn;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("sample_logits", TORCH_BOX(&sample_logits)); }

}  // namespace dspark
