#include "cpu/rotary_append.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/launch.h"
#include "cpu/parallel.h"

namespace dspark {
namespace {

constexpr const char* kOp = "rotary_append";

// The inverse of rows [batch, nodes]: where each token belongs, -1 for nowhere.
std::vector<int64_t> places(const Tensor& rows, int64_t tokens) {
  std::vector<int64_t> place_of(tokens, -1);
  const auto* row = static_cast<const int64_t*>(rows.const_data_ptr());
  for (int64_t place = 0; place < rows.numel(); ++place) {
    if (row[place] >= 0 && row[place] < tokens) place_of[row[place]] = place;
  }
  return place_of;
}

Tensor rotary_append(Tensor qkv, Tensor cos, Tensor sin, std::optional<Tensor> positions,
                     std::optional<Tensor> q_norm_weight, std::optional<Tensor> k_norm_weight,
                     double eps, Tensor k_cache, Tensor v_cache, Tensor cache_seqlens,
                     std::optional<Tensor> block_table, std::optional<Tensor> rows) {
  RotaryAppend p{};
  const ScalarType dtype = qkv.scalar_type();
  p.dtype = float_dtype(qkv, kOp, "qkv");
  std::vector<int64_t> place_of;
  if (rows) {
    check_shape(qkv, {-1, -1, -1}, kOp, "qkv", "have shape [T, Hq + 2 Hkv, E]");
    p.batch = rows->size(0), p.nodes = rows->size(1), p.tokens = qkv.size(0);
    place_of =
        places(whole(*rows, ScalarType::Long, {p.batch, p.nodes}, kOp, "rows", "have shape [B, N]"),
               p.tokens);
    p.place_of = place_of.data();
  } else {
    check_shape(qkv, {-1, -1, -1, -1}, kOp, "qkv", "have shape [B, N, Hq + 2 Hkv, E]");
    p.batch = qkv.size(0), p.nodes = qkv.size(1), p.tokens = p.batch * p.nodes;
  }
  const int64_t all_heads = qkv.size(qkv.dim() - 2);
  p.head_dim = qkv.size(qkv.dim() - 1);
  check(p.head_dim % 2 == 0 && p.head_dim <= kMaxRotaryDim, kOp, "qkv",
        "have an even head dimension up to 512", p.head_dim);
  check_shape(k_cache, {-1, -1, -1, p.head_dim}, kOp, "k_cache", "have shape [B, S, Hkv, E]");
  p.blocks = k_cache.size(0), p.block_size = k_cache.size(1), p.kv_heads = k_cache.size(2);
  p.heads = all_heads - 2 * p.kv_heads;
  check(p.heads >= 1, kOp, "qkv", "have Hq + 2 Hkv heads", all_heads);
  check_shape(v_cache, {p.blocks, p.block_size, p.kv_heads, p.head_dim}, kOp, "v_cache",
              "have the shape of k_cache");
  check_dtype(k_cache, dtype, kOp, "k_cache"), check_dtype(v_cache, dtype, kOp, "v_cache");
  check(k_cache.stride(3) == 1 && v_cache.stride(3) == 1, kOp, "k_cache and v_cache",
        "have adjacent elements in a head", "a stride");
  p.blocks_per_request = block_table ? block_table->size(1) : 1;
  check(block_table || p.blocks == p.batch, kOp, "k_cache", "hold B requests", p.blocks);
  for (int i = 0; i < 3; ++i) {
    p.k_stride[i] = k_cache.stride(i), p.v_stride[i] = v_cache.stride(i);
  }
  const Tensor qkv_ = torch::stable::contiguous(qkv);
  p.angles = positions ? cos.size(0) : p.tokens;
  const auto angles = [&](const Tensor& tensor, const char* name) {
    if (positions) {
      return whole(tensor, dtype, {p.angles, p.head_dim}, kOp, name, "have shape [L, E]");
    }
    if (rows) return whole(tensor, dtype, {p.tokens, p.head_dim}, kOp, name, "have shape [T, E]");
    return whole(tensor, dtype, {p.batch, p.nodes, p.head_dim}, kOp, name, "have shape [B, N, E]");
  };
  const Tensor cos_ = angles(cos, "cos"), sin_ = angles(sin, "sin");
  check(p.angles > 0 || p.tokens == 0, kOp, "cos", "have a row per position", p.angles);
  const Optional positions_ =
      rows ? Optional(positions, ScalarType::Long, {p.tokens}, kOp, "positions", "have shape [T]")
           : Optional(positions, ScalarType::Long, {p.batch, p.nodes}, kOp, "positions",
                      "have shape [B, N]");
  const Optional q_norm_(q_norm_weight, dtype, {p.head_dim}, kOp, "q_norm_weight",
                         "have shape [E]");
  const Optional k_norm_(k_norm_weight, dtype, {p.head_dim}, kOp, "k_norm_weight",
                         "have shape [E]");
  const Optional seqlens_(cache_seqlens, ScalarType::Int, {p.batch}, kOp, "cache_seqlens",
                          "have shape [B]");
  const Optional table_(block_table, ScalarType::Int, {p.batch, p.blocks_per_request}, kOp,
                        "block_table", "have shape [B, max_blocks]");
  p.qkv = qkv_.const_data_ptr(), p.cos = cos_.const_data_ptr(), p.sin = sin_.const_data_ptr();
  p.positions = positions_.data<int64_t>();
  p.q_norm_weight = q_norm_.data<void>(), p.k_norm_weight = k_norm_.data<void>();
  p.eps = static_cast<float>(eps);
  p.cache_seqlens = seqlens_.data<int32_t>(), p.block_table = table_.data<int32_t>();

  Tensor q = rows ? empty({p.tokens, p.heads, p.head_dim}, dtype)
                  : empty({p.batch, p.nodes, p.heads, p.head_dim}, dtype);
  p.q = q.mutable_data_ptr();
  p.k_cache = k_cache.mutable_data_ptr(), p.v_cache = v_cache.mutable_data_ptr();
  constexpr int64_t kTaskBytes = 128 * 1024;  // of heads; less is not worth a thread
  const int64_t token_bytes = all_heads * p.head_dim * qkv_.element_size();
  const int64_t most = kTaskBytes / std::max<int64_t>(token_bytes, 1);
  const int64_t task_tokens = std::max<int64_t>(most, 1);
  parallel_tasks((p.tokens + task_tokens - 1) / task_tokens, [&](int64_t task) {
    const int64_t begin = task * task_tokens, end = std::min(begin + task_tokens, p.tokens);
    DSPARK_CALL_CPU_KERNEL(rotary_append_tokens, p, begin, end);
  });
  return q;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("rotary_append", TORCH_BOX(&rotary_append)); }

}  // namespace dspark
