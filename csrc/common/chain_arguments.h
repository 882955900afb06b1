// The checked arguments and the outputs of chain_reject.

#pragma once

#include <tuple>

#include "common/chain.h"
#include "common/launch.h"

namespace dspark {

class ChainArguments {
 public:
  ChainArguments(const Tensor& draft_tokens, const Tensor& draft_logits,
                 const Tensor& target_logits, const Tensor& temperature, const Tensor& seed,
                 const Tensor& position, const char* op) {
    view.dtype = float_dtype(target_logits, op, "target_logits");
    check_shape(draft_tokens, {-1, -1}, op, "draft_tokens", "have shape [B, K]");
    check_shape(target_logits, {-1, -1, -1}, op, "target_logits", "have shape [B, K + 1, V]");
    batch = draft_tokens.size(0);
    view.length = draft_tokens.size(1), view.vocab = target_logits.size(2);
    check_shape(target_logits, {batch, view.length + 1, -1}, op, "target_logits",
                "have shape [B, K + 1, V]");
    check_dtype(draft_logits, target_logits.scalar_type(), op, "draft_logits");
    check_shape(draft_logits, {batch, view.length, view.vocab}, op, "draft_logits",
                "have shape [B, K, V]");
    tokens_ = whole(draft_tokens, ScalarType::Long, {batch, view.length}, op, "draft_tokens");
    temperature_ = whole(temperature, ScalarType::Float, {batch}, op, "temperature");
    seed_ = whole(seed, ScalarType::Long, {batch}, op, "seed");
    position_ = whole(position, ScalarType::Long, {batch}, op, "position");
    draft_ = with_contiguous_rows(draft_logits);
    target_ = with_contiguous_rows(target_logits);
    view.tokens = tokens_.const_data_ptr<int64_t>(),
    view.temperature = temperature_.const_data_ptr<float>();
    view.seed = seed_.const_data_ptr<int64_t>(),
    view.position = position_.const_data_ptr<int64_t>();
    view.draft = draft_.const_data_ptr(), view.target = target_.const_data_ptr();
    view.draft_batch_stride = draft_.stride(0), view.draft_stride = draft_.stride(1);
    view.target_batch_stride = target_.stride(0), view.target_stride = target_.stride(1);

    emitted_ = empty({batch, view.length + 1}, ScalarType::Long, draft_tokens);
    num_emitted_ = empty({batch}, ScalarType::Int, draft_tokens);
    view.emitted = emitted_.mutable_data_ptr<int64_t>();
    view.num_emitted = num_emitted_.mutable_data_ptr<int32_t>();
  }

  // For many groups, of slices that are multiples of `unit`.
  SlicedChain sliced(int64_t unit) {
    const Slices slices = Slices::cut(view.vocab, unit);
    const int64_t rows = batch * (2 * view.length + 1);
    const auto scratch = [&](int64_t items, size_t size) {
      return empty({items * slices.count * static_cast<int64_t>(size)}, ScalarType::Byte, emitted_);
    };
    stats_ = scratch(rows, sizeof(RowStats)), draws_ = scratch(batch, sizeof(Draw));
    return {view, slices, static_cast<RowStats*>(stats_.mutable_data_ptr()),
            static_cast<Draw*>(draws_.mutable_data_ptr())};
  }

  std::tuple<Tensor, Tensor> outputs() const { return {emitted_, num_emitted_}; }

  int64_t batch;
  ChainReject view{};

 private:
  Tensor tokens_, draft_, target_, temperature_, seed_, position_, emitted_, num_emitted_;
  Tensor stats_, draws_;
};

}  // namespace dspark
