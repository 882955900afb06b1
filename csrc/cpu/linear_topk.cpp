#include "cpu/linear_topk.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "common/check.h"
#include "common/launch.h"
#include "cpu/parallel.h"
#include "cpu/per_row.h"

namespace dspark {
namespace {

constexpr const char* kOp = "linear_topk";
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Merges the workers' lists of one row. A list that is not full lacks only scores of -inf: their
// columns are the lowest ones which are not in it.
void merge_row(const LinearTopk& p, int64_t workers, int64_t row, float* keys, int64_t* ids) {
  std::vector<std::pair<float, int64_t>> best;  // (key, column)
  for (int64_t worker = 0; worker < workers; ++worker) {
    const int64_t list = (worker * p.rows + row) * p.k;
    for (int64_t i = 0; i < p.k && p.keys[list + i] > -kInfinity; ++i) {
      best.emplace_back(p.keys[list + i], p.columns[list + i]);
    }
  }
  std::sort(best.begin(), best.end(), [](const auto& a, const auto& b) {
    return a.first > b.first || (a.first == b.first && a.second < b.second);
  });
  const int64_t found = std::min<int64_t>(best.size(), p.k);
  best.resize(found);
  for (int64_t column = 0; static_cast<int64_t>(best.size()) < p.k; ++column) {
    const auto same = [&](const auto& entry) { return entry.second == column; };
    if (std::none_of(best.begin(), best.begin() + found, same))
      best.emplace_back(-kInfinity, column);
  }
  for (int64_t i = 0; i < p.k; ++i) {
    keys[i] = best[i].first;
    ids[i] = p.id_map ? p.id_map[best[i].second] : best[i].second + p.vocab_offset;
  }
}

float merge_logsumexp(const LinearTopk& p, int64_t tasks, int64_t row) {
  float highest = -kInfinity;
  for (int64_t task = 0; task < tasks; ++task) {
    highest = std::max(highest, p.maximum[task * p.padded_rows + row]);
  }
  if (std::isinf(highest)) return highest;
  double sum = 0;
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t i = task * p.padded_rows + row;
    sum += p.sum[i] * std::exp(static_cast<double>(p.maximum[i]) - highest);
  }
  return static_cast<float>(highest + std::log(sum));
}

std::tuple<Tensor, Tensor, Tensor> linear_topk(
    Tensor x, Tensor weight, int64_t k, std::optional<Tensor> bias,
    std::optional<Tensor> temperature, std::optional<Tensor> seed, std::optional<Tensor> position,
    std::optional<Tensor> id_map, int64_t vocab_offset, std::optional<Tensor> seen,
    std::optional<Tensor> repetition_penalty) {
  LinearTopk p{};
  p.dtype = float_dtype(x, kOp, "x");
  check_dtype(weight, x.scalar_type(), kOp, "weight");
  check_shape(x, {-1, -1}, kOp, "x", "have shape [M, D]");
  check_shape(weight, {-1, x.size(1)}, kOp, "weight", "have shape [V, D]");
  p.rows = x.size(0), p.depth = x.size(1), p.vocab = weight.size(0), p.k = k;
  check(k >= 1 && k <= p.vocab, kOp, "k", "be from 1 to V", k);
  check(p.vocab <= std::numeric_limits<int32_t>::max(), kOp, "weight", "have < 2^31 rows", p.vocab);
  const Tensor x_rows = with_contiguous_rows(x), weight_rows = with_contiguous_rows(weight);
  p.x = x_rows.const_data_ptr(), p.x_stride = x_rows.stride(0);
  p.weight = weight_rows.const_data_ptr(), p.weight_stride = weight_rows.stride(0);
  const Optional bias_(bias, x.scalar_type(), {p.vocab}, kOp, "bias", "have shape [V]");
  const PerRow<float> temperature_(temperature, ScalarType::Float, p.rows, kOp, "temperature");
  const PerRow<int64_t> seed_(seed, ScalarType::Long, p.rows, kOp, "seed");
  const Optional position_(position, ScalarType::Long, {p.rows}, kOp, "position", "have shape [M]");
  const PenaltyArguments penalty_(seen, repetition_penalty, p.rows, kOp);
  const Optional id_map_(id_map, ScalarType::Long, {p.vocab}, kOp, "id_map", "have shape [V]");
  check(!temperature || (seed && position), kOp, "seed and position", "come with temperature",
        "none");
  p.bias = bias_.data<void>(), p.temperature = temperature_.data();
  p.seed = seed_.data(), p.position = position_.data<int64_t>();
  p.id_map = id_map_.data<int64_t>(), p.vocab_offset = vocab_offset;
  p.penalty = penalty_.view;
  std::vector<int64_t> any_seen(p.penalty.words);
  for (int64_t row = 0; seen && row < p.rows; row += p.penalty.rows_per_entry) {
    const int64_t* bits = p.penalty.seen + row / p.penalty.rows_per_entry * p.penalty.words;
    for (int64_t word = 0; word < p.penalty.words; ++word) any_seen[word] |= bits[word];
  }
  p.any_seen = any_seen.data();

  Tensor keys = empty({p.rows, k}, ScalarType::Float), ids = empty({p.rows, k}, ScalarType::Long);
  Tensor logsumexp = empty({p.rows}, ScalarType::Float);
  if (p.rows == 0) return {keys, ids, logsumexp};

  const auto sizes = DSPARK_CALL_CPU_KERNEL(linear_topk_sizes, p);
  p.task_rows = columns_per_task(p.vocab, sizes.tile);
  const int64_t tasks = (p.vocab + p.task_rows - 1) / p.task_rows, workers = num_workers(tasks);
  p.padded_rows = sizes.padded_rows;
  const int64_t lists = workers * p.rows * k;
  std::vector<int32_t> columns(lists);
  std::vector<float> floats(lists + (workers + 2 * tasks) * p.padded_rows, -kInfinity);
  const Tensor packed = empty({sizes.packed_floats}, ScalarType::Float);
  p.packed = packed.mutable_data_ptr<float>();
  p.columns = columns.data();
  p.keys = floats.data();
  p.threshold = p.keys + lists;
  p.maximum = p.threshold + workers * p.padded_rows;
  p.sum = p.maximum + tasks * p.padded_rows;
  for (int64_t worker = 0; worker < workers; ++worker) {
    // lanes without a row never take part
    float* threshold = p.threshold + worker * p.padded_rows;
    std::fill(threshold + p.rows, threshold + p.padded_rows, kInfinity);
  }

  DSPARK_CALL_CPU_KERNEL(linear_topk_pack, p);
  parallel_tasks(tasks, workers, [&](int64_t worker, int64_t task) {
    DSPARK_CALL_CPU_KERNEL(linear_topk_task, p, worker, task);
  });
  for (int64_t row = 0; row < p.rows; ++row) {
    merge_row(p, workers, row, keys.mutable_data_ptr<float>() + row * k,
              ids.mutable_data_ptr<int64_t>() + row * k);
    logsumexp.mutable_data_ptr<float>()[row] = merge_logsumexp(p, tasks, row);
  }
  return {keys, ids, logsumexp};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("linear_topk", TORCH_BOX(&linear_topk)); }

}  // namespace dspark
