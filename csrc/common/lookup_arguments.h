// The checked arguments and the outputs of context_lookup.

#pragma once

#include <tuple>

#include "common/launch.h"
#include "common/lookup.h"

namespace dspark {

class LookupArguments {
 public:
  LookupArguments(const Tensor& history, const Tensor& lengths, int64_t max_ngram,
                  int64_t min_ngram, int64_t num_paths, int64_t path_length, const char* op) {
    check_dtype(history, ScalarType::Long, op, "history");
    check_shape(history, {-1, -1}, op, "history", "have shape [B, S]");
    batch = history.size(0);
    const int64_t capacity = history.size(1);
    check_dtype(lengths, ScalarType::Int, op, "lengths");
    check_shape(lengths, {batch}, op, "lengths", "have shape [B]");
    check(capacity < (1 << 30), op, "history", "have fewer than 2^30 columns", capacity);
    check(num_paths >= 1 && num_paths <= kMaxPaths, op, "num_paths", "be 1 to 16", num_paths);
    check(path_length >= 1 && path_length <= kMaxPathLength, op, "path_length", "be 1 to 64",
          path_length);
    check(max_ngram <= kMaxNgram && min_ngram >= 1 && min_ngram <= max_ngram, op, "min_ngram",
          "be 1 to max_ngram, which is at most 16", min_ngram);

    history_ = with_contiguous_rows(history), lengths_ = torch::stable::contiguous(lengths);
    paths_ = empty({batch, num_paths, path_length}, ScalarType::Long, history);
    match_length_ = empty({batch, num_paths}, ScalarType::Int, history);
    const LookupOptions options{static_cast<int>(max_ngram), static_cast<int>(min_ngram),
                                static_cast<int>(num_paths), static_cast<int>(path_length)};
    view = {history_.const_data_ptr<int64_t>(),
            history_.stride(0),
            lengths_.const_data_ptr<int32_t>(),
            static_cast<int>(capacity),
            options,
            paths_.mutable_data_ptr<int64_t>(),
            match_length_.mutable_data_ptr<int32_t>()};
  }

  std::tuple<Tensor, Tensor> outputs() const { return {paths_, match_length_}; }

  int64_t batch;
  ContextLookup view{};

 private:
  Tensor history_, lengths_, paths_, match_length_;
};

}  // namespace dspark
