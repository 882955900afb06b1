#include "cpu/context_lookup.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "cpu/launch.h"
#include "cpu/parallel.h"

namespace dspark {
namespace {

std::tuple<Tensor, Tensor> context_lookup(Tensor history, Tensor lengths, int64_t max_ngram,
                                          int64_t min_ngram, int64_t num_paths,
                                          int64_t path_length) {
  constexpr const char* kOp = "context_lookup";
  check_dtype(history, ScalarType::Long, kOp, "history");
  check_shape(history, {-1, -1}, kOp, "history", "have shape [B, S]");
  const int64_t batch = history.size(0), capacity = history.size(1);
  check_dtype(lengths, ScalarType::Int, kOp, "lengths");
  check_shape(lengths, {batch}, kOp, "lengths", "have shape [B]");
  check(capacity < (1 << 30), kOp, "history", "have fewer than 2^30 columns", capacity);
  check(num_paths >= 1 && num_paths <= kMaxPaths, kOp, "num_paths", "be 1 to 16", num_paths);
  check(path_length >= 1 && path_length <= kMaxPathLength, kOp, "path_length", "be 1 to 32",
        path_length);
  check(max_ngram <= kMaxNgram && min_ngram >= 1 && min_ngram <= max_ngram, kOp, "min_ngram",
        "be 1 to max_ngram, which is at most 16", min_ngram);

  const Tensor rows = with_contiguous_rows(history), used = torch::stable::contiguous(lengths);
  Tensor paths = empty({batch, num_paths, path_length}, ScalarType::Long);
  Tensor match_length = empty({batch, num_paths}, ScalarType::Int);
  const LookupOptions options{static_cast<int>(max_ngram), static_cast<int>(min_ngram),
                              static_cast<int>(num_paths), static_cast<int>(path_length)};
  const Tensor matches = empty({num_workers(batch), capacity}, ScalarType::Long);
  parallel_tasks(batch, [&](int64_t worker, int64_t b) {
    const int length = used.const_data_ptr<int32_t>()[b];
    DSPARK_CALL_CPU_KERNEL(context_lookup_request,
                           rows.const_data_ptr<int64_t>() + b * rows.stride(0),
                           std::clamp(length, 0, static_cast<int>(capacity)), options,
                           matches.mutable_data_ptr<int64_t>() + worker * capacity,
                           paths.mutable_data_ptr<int64_t>() + b * num_paths * path_length,
                           match_length.mutable_data_ptr<int32_t>() + b * num_paths);
  });
  return {paths, match_length};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("context_lookup", TORCH_BOX(&context_lookup)); }

}  // namespace dspark
