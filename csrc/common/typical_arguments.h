// The checked arguments of typical_accept.

#pragma once

#include "common/typical.h"
#include "common/walk_arguments.h"

namespace dspark {

class TypicalArguments {
 public:
  TypicalArguments(const Walks& walks, const Tensor& logits,
                   const std::optional<Tensor>& temperature, double epsilon, double delta,
                   const char* op)
      : temperature_(temperature, ScalarType::Float, {walks.batch}, op, "temperature") {
    const DType dtype = float_dtype(logits, op, "logits");
    check_shape(logits, {walks.batch, walks.nodes, -1}, op, "logits", "have shape [B, N, V]");
    logits_ = with_contiguous_rows(logits);
    view = {walks.view,
            {static_cast<float>(epsilon), static_cast<float>(delta), walks.view.depth_limit()},
            dtype,
            logits_.const_data_ptr(),
            logits_.stride(0),
            logits_.stride(1),
            logits_.size(2),
            temperature_.data<float>()};
  }

  // For many groups, of slices that are multiples of `unit`.
  SlicedTypical sliced(const Walks& walks, int64_t unit) {
    const Slices slices = Slices::cut(view.vocab, unit);
    const int64_t bytes = walks.batch * walks.nodes * slices.count * sizeof(RowStats);
    stats_ = empty({bytes}, ScalarType::Byte, logits_);
    return {view, slices, static_cast<RowStats*>(stats_.mutable_data_ptr())};
  }

  TypicalAccept view;

 private:
  Tensor logits_, stats_;
  Optional temperature_;
};

}  // namespace dspark
