// Merging the top-k of vocabulary shards: a few numbers per row, sorted.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "common/launch.h"
#include "cpu/parallel.h"

namespace dspark {
namespace {

constexpr const char* kOp = "merge_topk";

// keys, ids [shards, rows, width] -> the k best of one row, ties to the lowest id
void merge_row(const float* keys, const int64_t* ids, int64_t shards, int64_t rows, int64_t width,
               int64_t k, int64_t row, float* out_keys, int64_t* out_ids) {
  std::vector<std::pair<float, int64_t>> candidates;  // (-key, id)
  for (int64_t shard = 0; shard < shards; ++shard) {
    const int64_t list = (shard * rows + row) * width;
    for (int64_t i = list; i < list + width; ++i) candidates.emplace_back(-keys[i], ids[i]);
  }
  std::partial_sort(candidates.begin(), candidates.begin() + k, candidates.end());
  for (int64_t i = 0; i < k; ++i) {
    out_keys[row * k + i] = -candidates[i].first;
    out_ids[row * k + i] = candidates[i].second;
  }
}

float merge_logsumexp(const float* logsumexp, int64_t shards, int64_t rows, int64_t row) {
  float highest = -std::numeric_limits<float>::infinity();
  for (int64_t s = 0; s < shards; ++s) highest = std::max(highest, logsumexp[s * rows + row]);
  if (std::isinf(highest)) return highest;
  double sum = 0;
  for (int64_t s = 0; s < shards; ++s) {
    sum += std::exp(static_cast<double>(logsumexp[s * rows + row]) - highest);
  }
  return static_cast<float>(highest + std::log(sum));
}

std::tuple<Tensor, Tensor, Tensor> merge_topk(Tensor keys, Tensor ids, Tensor logsumexp,
                                              int64_t k) {
  check_dtype(keys, ScalarType::Float, kOp, "keys");
  check_dtype(ids, ScalarType::Long, kOp, "ids");
  check_dtype(logsumexp, ScalarType::Float, kOp, "logsumexp");
  check_shape(keys, {-1, -1, -1}, kOp, "keys", "have shape [S, M, K]");
  const int64_t shards = keys.size(0), rows = keys.size(1), width = keys.size(2);
  check_shape(ids, {shards, rows, width}, kOp, "ids", "have the shape of keys");
  check_shape(logsumexp, {shards, rows}, kOp, "logsumexp", "have shape [S, M]");
  check(k >= 1 && k <= shards * width, kOp, "k", "be from 1 to S·K", k);
  const Tensor in_keys = torch::stable::contiguous(keys), in_ids = torch::stable::contiguous(ids);
  const Tensor in_logsumexp = torch::stable::contiguous(logsumexp);

  Tensor out_keys = empty({rows, k}, ScalarType::Float);
  Tensor out_ids = empty({rows, k}, ScalarType::Long);
  Tensor out_logsumexp = empty({rows}, ScalarType::Float);
  float* out = out_logsumexp.mutable_data_ptr<float>();
  parallel_tasks(rows, [&](int64_t row) {
    merge_row(in_keys.const_data_ptr<float>(), in_ids.const_data_ptr<int64_t>(), shards, rows,
              width, k, row, out_keys.mutable_data_ptr<float>(),
              out_ids.mutable_data_ptr<int64_t>());
    out[row] = merge_logsumexp(in_logsumexp.const_data_ptr<float>(), shards, rows, row);
  });
  return {out_keys, out_ids, out_logsumexp};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("merge_topk", TORCH_BOX(&merge_topk)); }

}  // namespace dspark
