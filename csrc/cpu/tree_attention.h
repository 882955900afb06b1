// What the launcher and the kernels of tree_attention share.

#pragma once

#include "common/types.h"
#include "cpu/isa.h"

namespace dspark {

constexpr int kMaxNodes = 256;
constexpr int kMaxChunks = 16;
constexpr int kGroupRows = 64;  // rows, that is (node, query head) pairs, of one task

struct TreeAttention {
  DType dtype, cache_dtype;
  const void *q, *k, *v;  // [tokens, heads, head_dim], [blocks, block_size, kv_heads, head_dim]
  int64_t q_stride[3], k_stride[3], v_stride[3];  // q: request, node or row, head
  int64_t batch, nodes, heads, kv_heads, head_dim, blocks, block_size, blocks_per_request;
  const int32_t *cache_seqlens, *block_table;  // [batch], [batch, blocks_per_request] or null
  const int64_t* ancestors;                    // [batch, nodes, ceil(nodes / 64)]
  const int64_t* token_of;  // [batch, nodes] or null, then token is request * nodes + node
  int64_t tokens;
  const float *k_scale, *v_scale;  // [kv_heads] or null
  float scale, softcap;
  int64_t window;

  // The nodes that take part, with a token and any bit: how many [batch], which [batch, nodes].
  const int32_t *active_count, *active;
  float* scratch;    // [workers, sizes.scratch_floats]
  float* partial;    // [tasks, sizes.partial_floats]
  void* out;         // [tokens, heads, head_dim]
  float* logsumexp;  // [tokens, heads]

  DSPARK_FORCE_INLINE int64_t queries_per_head() const { return heads / kv_heads; }
  DSPARK_FORCE_INLINE int64_t rows(int64_t request) const {
    return active_count[request] * queries_per_head();
  }
  DSPARK_FORCE_INLINE int64_t rows(int64_t request, int64_t group) const {
    const int64_t left = rows(request) - group * kGroupRows;
    return left < kGroupRows ? left : kGroupRows;
  }
  DSPARK_FORCE_INLINE int64_t node_of(int64_t request, int64_t row) const {
    return active[request * nodes + row / queries_per_head()];
  }
  DSPARK_FORCE_INLINE int64_t token(int64_t request, int64_t node) const {
    const int64_t place = request * nodes + node;
    return token_of ? token_of[place] : place;
  }
  DSPARK_FORCE_INLINE bool has_token(int64_t request, int64_t node) const {
    return token_of == nullptr || (token(request, node) >= 0 && token(request, node) < tokens);
  }
  DSPARK_FORCE_INLINE int64_t q_offset(int64_t request, int64_t node) const {
    return token_of ? token(request, node) * q_stride[1]
                    : request * q_stride[0] + node * q_stride[1];
  }
  DSPARK_FORCE_INLINE int64_t slots() const { return block_size * blocks_per_request; }
};

// The work on one group of rows over one chunk of slots.
struct TreeAttentionTask {
  int64_t request, kv_head, group, begin, end;
};

struct TreeAttentionSizes {
  int64_t scratch_floats, partial_floats;
};

DSPARK_CPU_KERNEL(TreeAttentionSizes tree_attention_sizes(const TreeAttention& p))
// Writes partial number `index`: sums weighted relative to the chunk's own maximum.
DSPARK_CPU_KERNEL(void tree_attention_task(const TreeAttention& p, const TreeAttentionTask& task,
                                           int64_t index, int64_t worker))
// Merges the partials first .. last - 1, the chunks of one group.
DSPARK_CPU_KERNEL(void tree_attention_merge(const TreeAttention& p, const TreeAttentionTask& task,
                                            int64_t first, int64_t last))

}  // namespace dspark
