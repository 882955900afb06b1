#include "cpu/tree_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "common/launch.h"
#include "cpu/parallel.h"

namespace dspark {
namespace {

constexpr const char* kOp = "tree_attention";

// Chunks of slots for every group of rows. They depend on one request alone, so that neither the
// rest of the batch nor the number of threads changes its result.
std::vector<TreeAttentionTask> make_tasks(const TreeAttention& p) {
  constexpr int64_t kMinChunk = 480;
  std::vector<TreeAttentionTask> tasks;
  for (int64_t request = 0; request < p.batch; ++request) {
    const int64_t wanted = p.cache_seqlens[request] + p.nodes;
    const int64_t length = std::clamp<int64_t>(wanted, 0, p.slots());
    const int64_t chunk = std::max(kMinChunk, (length / kMaxChunks / 48 + 1) * 48);
    for (int64_t kv_head = 0; kv_head < p.kv_heads; ++kv_head) {
      for (int64_t group = 0; group * kGroupRows < p.rows(request); ++group) {
        int64_t begin = 0;
        do {
          tasks.push_back({request, kv_head, group, begin, std::min(begin + chunk, length)});
          begin += chunk;
        } while (begin < length);
      }
    }
  }
  return tasks;
}

// Which nodes of each request have a token and any bit; results of tokens without are zero.
void find_active(const TreeAttention& p, int32_t* count, int32_t* active) {
  const int64_t words = (p.nodes + 63) / 64;
  const int64_t token_bytes = p.heads * p.head_dim * (p.dtype == DType::kFp32 ? 4 : 2);
  for (int64_t request = 0; request < p.batch; ++request) {
    int32_t* found = active + request * p.nodes;
    for (int64_t node = 0; node < p.nodes; ++node) {
      if (!p.has_token(request, node)) continue;
      const int64_t token = p.token(request, node);
      const int64_t* bits = p.ancestors + (request * p.nodes + node) * words;
      if (std::any_of(bits, bits + words, [](int64_t word) { return word != 0; })) {
        *found++ = node;
      } else {
        memset(static_cast<char*>(p.out) + token * token_bytes, 0, token_bytes);
        std::fill_n(p.logsumexp + token * p.heads, p.heads,
                    -std::numeric_limits<float>::infinity());
      }
    }
    count[request] = found - (active + request * p.nodes);
  }
}

// The first task of every group of rows, and the end.
std::vector<int64_t> group_starts(const std::vector<TreeAttentionTask>& tasks) {
  std::vector<int64_t> starts;
  for (size_t i = 0; i < tasks.size(); ++i) {
    if (tasks[i].begin == 0) starts.push_back(i);
  }
  starts.push_back(tasks.size());
  return starts;
}

std::tuple<Tensor, Tensor> tree_attention(Tensor q, Tensor k_cache, Tensor v_cache,
                                          Tensor cache_seqlens, Tensor ancestors, double scale,
                                          std::optional<Tensor> block_table, int64_t window,
                                          double softcap, std::optional<Tensor> k_scale,
                                          std::optional<Tensor> v_scale,
                                          std::optional<Tensor> rows) {
  TreeAttention p{};
  p.dtype = float_dtype(q, kOp, "q");
  const bool fp8 = k_cache.scalar_type() == ScalarType::Float8_e4m3fn;
  p.cache_dtype = fp8 ? DType::kFp8 : p.dtype;
  if (!fp8) check_dtype(k_cache, q.scalar_type(), kOp, "k_cache");
  check_dtype(v_cache, k_cache.scalar_type(), kOp, "v_cache");
  if (rows) {
    check_shape(q, {-1, -1, -1}, kOp, "q", "have shape [T, Hq, E]");
    check_shape(*rows, {-1, -1}, kOp, "rows", "have shape [B, N]");
  } else {
    check_shape(q, {-1, -1, -1, -1}, kOp, "q", "have shape [B, N, Hq, E]");
  }
  const Tensor& places = rows ? *rows : q;
  p.batch = places.size(0), p.nodes = places.size(1);
  p.heads = q.size(q.dim() - 2), p.head_dim = q.size(q.dim() - 1);
  p.tokens = rows ? q.size(0) : p.batch * p.nodes;
  check(p.nodes >= 1 && p.nodes <= kMaxNodes, kOp, "q", "have 1 to 256 nodes", p.nodes);
  check_shape(k_cache, {-1, -1, -1, p.head_dim}, kOp, "k_cache", "have shape [B, S, Hkv, E]");
  p.blocks = k_cache.size(0), p.block_size = k_cache.size(1), p.kv_heads = k_cache.size(2);
  check_shape(v_cache, {p.blocks, p.block_size, p.kv_heads, p.head_dim}, kOp, "v_cache",
              "have the shape of k_cache");
  check(p.kv_heads > 0 && p.heads % p.kv_heads == 0, kOp, "k_cache", "have Hkv dividing Hq",
        p.kv_heads);
  p.blocks_per_request = block_table ? block_table->size(1) : 1;
  check(block_table || p.blocks == p.batch, kOp, "k_cache", "hold B requests", p.blocks);

  const Tensor queries = with_contiguous_rows(q), keys = with_contiguous_rows(k_cache);
  const Tensor values = with_contiguous_rows(v_cache);
  p.q = queries.const_data_ptr(), p.k = keys.const_data_ptr(), p.v = values.const_data_ptr();
  for (int i = 0; i < 3; ++i) {
    p.q_stride[i] = rows && i == 0 ? 0 : queries.stride(rows ? i - 1 : i);
    p.k_stride[i] = keys.stride(i), p.v_stride[i] = values.stride(i);
  }
  const Optional seqlens_(cache_seqlens, ScalarType::Int, {p.batch}, kOp, "cache_seqlens",
                          "have shape [B]");
  const Optional ancestors_(ancestors, ScalarType::Long, {p.batch, p.nodes, (p.nodes + 63) / 64},
                            kOp, "ancestors", "have shape [B, N, ceil(N / 64)]");
  const Optional table_(block_table, ScalarType::Int, {p.batch, p.blocks_per_request}, kOp,
                        "block_table", "have shape [B, max_blocks]");
  const Optional k_scale_(k_scale, ScalarType::Float, {p.kv_heads}, kOp, "k_scale",
                          "have shape [Hkv]");
  const Optional v_scale_(v_scale, ScalarType::Float, {p.kv_heads}, kOp, "v_scale",
                          "have shape [Hkv]");
  const Optional rows_(rows, ScalarType::Long, {p.batch, p.nodes}, kOp, "rows",
                       "have shape [B, N]");
  p.token_of = rows_.data<int64_t>();
  p.cache_seqlens = seqlens_.data<int32_t>(), p.ancestors = ancestors_.data<int64_t>();
  p.block_table = table_.data<int32_t>();
  p.k_scale = k_scale_.data<float>(), p.v_scale = v_scale_.data<float>();
  p.scale = static_cast<float>(scale), p.softcap = static_cast<float>(softcap), p.window = window;

  const ScalarType dtype = q.scalar_type();
  Tensor out = rows ? empty({p.tokens, p.heads, p.head_dim}, dtype)
                    : empty({p.batch, p.nodes, p.heads, p.head_dim}, dtype);
  Tensor logsumexp = rows ? empty({p.tokens, p.heads}, ScalarType::Float)
                          : empty({p.batch, p.nodes, p.heads}, ScalarType::Float);
  if (p.batch == 0 || p.heads == 0) return {out, logsumexp};
  p.out = out.mutable_data_ptr(), p.logsumexp = logsumexp.mutable_data_ptr<float>();

  std::vector<int32_t> active_count(p.batch), active(p.batch * p.nodes);
  find_active(p, active_count.data(), active.data());
  p.active_count = active_count.data(), p.active = active.data();
  const std::vector<TreeAttentionTask> tasks = make_tasks(p);
  const std::vector<int64_t> starts = group_starts(tasks);
  const auto sizes = DSPARK_CALL_CPU_KERNEL(tree_attention_sizes, p);
  const int64_t count = tasks.size(), workers = num_workers(count);
  const Tensor scratch = empty({workers * sizes.scratch_floats}, ScalarType::Float);
  const Tensor partial = empty({count * sizes.partial_floats}, ScalarType::Float);
  p.scratch = scratch.mutable_data_ptr<float>(), p.partial = partial.mutable_data_ptr<float>();
  parallel_tasks(count, workers, [&](int64_t worker, int64_t i) {
    DSPARK_CALL_CPU_KERNEL(tree_attention_task, p, tasks[i], i, worker);
  });
  parallel_tasks(starts.size() - 1, [&](int64_t i) {
    DSPARK_CALL_CPU_KERNEL(tree_attention_merge, p, tasks[starts[i]], starts[i], starts[i + 1]);
  });
  return {out, logsumexp};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("tree_attention", TORCH_BOX(&tree_attention)); }

}  // namespace dspark
