// The checked arguments and the output of seen_tokens.

#pragma once

#include <limits>

#include "common/launch.h"
#include "common/seen.h"

namespace dspark {

class SeenArguments {
 public:
  SeenArguments(const Tensor& history, const Tensor& lengths, int64_t vocab_size,
                const std::optional<Tensor>& tokens, const std::optional<Tensor>& ancestors,
                const std::optional<Tensor>& slots, const char* op) {
    check_dtype(history, ScalarType::Long, op, "history");
    check_shape(history, {-1, -1}, op, "history", "have shape [B, S]");
    const int64_t batch = history.size(0), capacity = history.size(1);
    check(capacity < (1 << 30), op, "history", "have fewer than 2^30 columns", capacity);
    check(vocab_size >= 1 && vocab_size <= std::numeric_limits<int32_t>::max(), op, "vocab_size",
          "be 1 to 2^31 - 1", vocab_size);
    check(tokens.has_value() == ancestors.has_value(), op, "ancestors", "come with tokens", "one");
    int64_t nodes = 1;
    if (tokens) {
      check_shape(*tokens, {batch, -1}, op, "tokens", "have shape [B, N]");
      nodes = tokens->size(1);
      check(nodes >= 1 && nodes <= kMaxNodes, op, "tokens", "have 1 to 256 columns", nodes);
    }
    history_ = with_contiguous_rows(history);
    lengths_ = whole(lengths, ScalarType::Int, {batch}, op, "lengths", "have shape [B]");
    tokens_ = Optional(tokens, ScalarType::Long, {batch, nodes}, op, "tokens");
    ancestors_ = Optional(ancestors, ScalarType::Long, {batch, nodes, (nodes + 63) / 64}, op,
                          "ancestors", "have shape [B, N, ceil(N / 64)]");
    slots_ = Optional(slots, ScalarType::Long, {-1}, op, "slots", "have shape [T]");
    rows = slots ? slots->size(0) : batch * nodes;
    const int64_t words = (vocab_size + 63) / 64;
    seen_ = empty({rows, words}, ScalarType::Long, history);
    view = {history_.const_data_ptr<int64_t>(),
            history_.stride(0),
            lengths_.const_data_ptr<int32_t>(),
            static_cast<int>(capacity),
            static_cast<int>(nodes),
            tokens_.data<int64_t>(),
            ancestors_.data<int64_t>(),
            slots_.data<int64_t>(),
            vocab_size,
            static_cast<int>(words),
            seen_.mutable_data_ptr<int64_t>()};
  }

  const Tensor& output() const { return seen_; }

  int64_t rows;
  SeenTokens view{};

 private:
  Tensor history_, lengths_, seen_;
  Optional tokens_, ancestors_, slots_;
};

}  // namespace dspark
