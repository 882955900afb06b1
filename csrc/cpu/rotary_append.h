// What the launcher and the kernels of rotary_append share.

#pragma once

#include "common/types.h"
#include "cpu/isa.h"

namespace dspark {

constexpr int kMaxRotaryDim = 512;

struct RotaryAppend {
  DType dtype;
  const void* qkv;                            // [tokens, heads + 2 · kv_heads, head_dim]
  const void *cos, *sin;                      // [angles, head_dim]
  const int64_t* positions;                   // [tokens], rows of these; null: tokens, their own
  const void *q_norm_weight, *k_norm_weight;  // [head_dim] or null
  float eps;
  int64_t tokens, angles, batch, nodes, heads, kv_heads, head_dim;
  const int64_t* place_of;      // [tokens], request * nodes + node, or -1; null: its own number
  void *q, *k_cache, *v_cache;  // [tokens, heads, head_dim], [blocks, block_size, kv_heads, ·]
  int64_t k_stride[3], v_stride[3], blocks, block_size, blocks_per_request;
  const int32_t *cache_seqlens, *block_table;  // [batch], [batch, blocks_per_request] or null

  // The row of cos and sin of a token.
  DSPARK_FORCE_INLINE int64_t angle(int64_t token) const {
    if (positions == nullptr) return token;
    const int64_t position = positions[token] < 0 ? 0 : positions[token];
    return position < angles ? position : angles - 1;
  }

  // Where a token goes, as (block, place in it); false: nowhere.
  DSPARK_FORCE_INLINE bool slot(int64_t token, int64_t* block, int64_t* place) const {
    const int64_t own = place_of ? place_of[token] : token;
    if (own < 0) return false;
    const int64_t request = own / nodes, slot = cache_seqlens[request] + own % nodes;
    if (slot < 0 || slot >= block_size * blocks_per_request) return false;
    *place = slot % block_size;
    *block = block_table ? block_table[request * blocks_per_request + slot / block_size] : request;
    return *block >= 0 && *block < blocks;
  }
};

// The tokens begin .. end - 1 of all requests together.
DSPARK_CPU_KERNEL(void rotary_append_tokens(const RotaryAppend& p, int64_t begin, int64_t end))

}  // namespace dspark
