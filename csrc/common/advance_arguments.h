// The checked arguments of advance_step.

#pragma once

#include <optional>
#include <vector>

#include "common/advance.h"
#include "common/launch.h"

namespace dspark {

// The data of a tensor that the op changes: as it is, never of a copy.
template <typename T>
T* changed(const Tensor& tensor, ScalarType dtype, std::initializer_list<int64_t> shape,
           const char* op, const char* argument) {
  check_dtype(tensor, dtype, op, argument);
  check_shape(tensor, shape, op, argument, "have the shape of its documentation");
  check(tensor.is_contiguous(), op, argument, "be contiguous", "gaps");
  return static_cast<T*>(tensor.mutable_data_ptr());
}

class AdvanceArguments {
 public:
  AdvanceArguments(const Tensor& tokens, const Tensor& num_tokens, const Tensor& node,
                   const std::optional<Tensor>& rows, const std::vector<Tensor>& hidden,
                   const Tensor& stop, const Tensor& limit, const Tensor& history,
                   const Tensor& lengths, const Tensor& cache_seqlens, const Tensor& root,
                   const Tensor& done, const std::vector<Tensor>& kept, const char* op)
      : batch(tokens.dim() == 2 ? tokens.size(0) : -1),
        tokens_(whole(tokens, ScalarType::Long, {batch, -1}, op, "tokens")),
        num_tokens_(whole(num_tokens, ScalarType::Int, {batch}, op, "num_tokens")),
        node_(whole(node, ScalarType::Int, {batch}, op, "node")),
        stop_(whole(stop, ScalarType::Long, {-1}, op, "stop")),
        limit_(whole(limit, ScalarType::Int, {batch}, op, "limit")),
        rows_(rows, ScalarType::Long, {batch, -1}, op, "rows"),
        emitted_(empty({batch}, ScalarType::Int, tokens)) {
    check(hidden.size() == kept.size() && hidden.size() <= kMaxKept, op, "hidden",
          "be at most 4 tensors, as many as kept", hidden.size());
    check_dtype(history, ScalarType::Long, op, "history");
    check_shape(history, {batch, -1}, op, "history", "have shape [B, S]");
    check(history.size(1) <= 1 || history.stride(1) == 1, op, "history", "have adjacent columns",
          history.stride(1));
    view.tokens = tokens_.const_data_ptr<int64_t>();
    view.num_tokens = num_tokens_.const_data_ptr<int32_t>();
    view.node = node_.const_data_ptr<int32_t>();
    view.limit = limit_.const_data_ptr<int32_t>();
    view.rows = rows_.data<int64_t>();
    view.stop = stop_.const_data_ptr<int64_t>();
    view.columns = static_cast<int>(tokens_.size(1));
    view.num_stops = static_cast<int>(stop_.size(0));
    view.history = static_cast<int64_t*>(history.mutable_data_ptr());
    view.history_stride = history.stride(0), view.capacity = history.size(1);
    view.lengths = changed<int32_t>(lengths, ScalarType::Int, {batch}, op, "lengths");
    view.cache_seqlens =
        changed<int32_t>(cache_seqlens, ScalarType::Int, {batch}, op, "cache_seqlens");
    view.root = changed<int64_t>(root, ScalarType::Long, {batch}, op, "root");
    view.done = changed<uint8_t>(done, ScalarType::Bool, {batch}, op, "done");
    view.num_emitted = emitted_.mutable_data_ptr<int32_t>();
    uint64_t addresses = 0;
    for (size_t i = 0; i < hidden.size(); ++i) addresses |= keep(hidden[i], kept[i], op);
    view.packet_bytes = packet_bytes(addresses);
    const int64_t divided = batch > 0 ? view.total_rows / batch : 0;
    view.nodes = static_cast<int>(rows ? rows->size(1) : divided);
  }

  Tensor output() const { return emitted_; }

  const int64_t batch;
  AdvanceStep view{};

 private:
  // Adds a pair of tensors; returns the bitwise or of their addresses and strides.
  uint64_t keep(const Tensor& from, const Tensor& to, const char* op) {
    check_shape(from, {view.num_kept ? view.total_rows : -1, -1}, op, "hidden",
                "have shape [T, D]");
    check_shape(to, {batch, from.size(1)}, op, "kept", "have shape [B, D]");
    check_dtype(to, from.scalar_type(), op, "kept");
    check(to.size(1) <= 1 || to.stride(1) == 1, op, "kept", "have adjacent columns", to.stride(1));
    const Tensor& source = sources_.emplace_back(with_contiguous_rows(from));
    view.total_rows = source.size(0);
    const int64_t item = source.element_size();
    KeptRows& rows = view.kept[view.num_kept++];
    rows = {static_cast<const char*>(source.const_data_ptr()),
            static_cast<char*>(to.mutable_data_ptr()), source.stride(0) * item, to.stride(0) * item,
            source.size(1) * item};
    return reinterpret_cast<uintptr_t>(rows.from) | reinterpret_cast<uintptr_t>(rows.to) |
           rows.from_stride | rows.to_stride | rows.bytes;
  }

  Tensor tokens_, num_tokens_, node_, stop_, limit_;
  Optional rows_;
  Tensor emitted_;
  std::vector<Tensor> sources_;
};

}  // namespace dspark
