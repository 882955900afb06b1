#include "cpu/chain_reject.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/launch.h"
#include "cpu/parallel.h"

namespace dspark {
namespace {

constexpr const char* kOp = "chain_reject";

std::tuple<Tensor, Tensor> chain_reject(Tensor draft_tokens, Tensor draft_logits,
                                        Tensor target_logits, Tensor temperature, Tensor seed,
                                        Tensor position) {
  ChainReject p{};
  p.dtype = float_dtype(target_logits, kOp, "target_logits");
  check_shape(draft_tokens, {-1, -1}, kOp, "draft_tokens", "have shape [B, K]");
  check_shape(target_logits, {-1, -1, -1}, kOp, "target_logits", "have shape [B, K + 1, V]");
  const int64_t batch = draft_tokens.size(0);
  p.length = draft_tokens.size(1), p.vocab = target_logits.size(2);
  check_shape(target_logits, {batch, p.length + 1, -1}, kOp, "target_logits",
              "have shape [B, K + 1, V]");
  check_dtype(draft_logits, target_logits.scalar_type(), kOp, "draft_logits");
  check_shape(draft_logits, {batch, p.length, p.vocab}, kOp, "draft_logits",
              "have shape [B, K, V]");
  const Tensor tokens =
      whole(draft_tokens, ScalarType::Long, {batch, p.length}, kOp, "draft_tokens");
  const Tensor tau = whole(temperature, ScalarType::Float, {batch}, kOp, "temperature");
  const Tensor seeds = whole(seed, ScalarType::Long, {batch}, kOp, "seed");
  const Tensor positions = whole(position, ScalarType::Long, {batch}, kOp, "position");
  const Tensor draft = with_contiguous_rows(draft_logits);
  const Tensor target = with_contiguous_rows(target_logits);
  p.tokens = tokens.const_data_ptr<int64_t>(), p.temperature = tau.const_data_ptr<float>();
  p.seed = seeds.const_data_ptr<int64_t>(), p.position = positions.const_data_ptr<int64_t>();
  p.draft = draft.const_data_ptr(), p.target = target.const_data_ptr();
  p.draft_batch_stride = draft.stride(0), p.draft_stride = draft.stride(1);
  p.target_batch_stride = target.stride(0), p.target_stride = target.stride(1);

  Tensor emitted = empty({batch, p.length + 1}, ScalarType::Long);
  Tensor num_emitted = empty({batch}, ScalarType::Int);
  p.emitted = emitted.mutable_data_ptr<int64_t>();
  p.num_emitted = num_emitted.mutable_data_ptr<int32_t>();
  parallel_tasks(batch, [&](int64_t, int64_t request) {
    DSPARK_CALL_CPU_KERNEL(chain_reject_request, p, request);
  });
  return {emitted, num_emitted};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("chain_reject", TORCH_BOX(&chain_reject)); }

}  // namespace dspark
