// What the launcher and the kernels of rotary_append share.

#pragma once

#include "common/types.h"
#include "cpu/isa.h"

namespace dspark {

constexpr int kMaxRotaryDim = 512;

struct RotaryAppend {
  DType dtype;
  const void* qkv;                            // [batch, nodes, heads + 2 · kv_heads, head_dim]
  const void *cos, *sin;                      // [batch, nodes, head_dim]
  const void *q_norm_weight, *k_norm_weight;  // [head_dim] or null
  float eps;
  int64_t batch, nodes, heads, kv_heads, head_dim;
  void *q, *k_cache,
      *v_cache;  // [batch, nodes, heads, head_dim], [blocks, block_size, kv_heads, ·]
  int64_t k_stride[3], v_stride[3], blocks, block_size, blocks_per_request;
  const int32_t *cache_seqlens, *block_table;  // [batch], [batch, blocks_per_request] or null

  // Where node n of a request goes, as (block, place in it); false: nowhere.
  bool slot(int64_t request, int64_t n, int64_t* block, int64_t* place) const {
    const int64_t slot = cache_seqlens[request] + n;
    if (slot < 0 || slot >= block_size * blocks_per_request) return false;
    *place = slot % block_size;
    *block = block_table ? block_table[request * blocks_per_request + slot / block_size] : request;
    return *block >= 0 && *block < blocks;
  }
};

// The nodes begin .. end - 1 of all requests together.
DSPARK_CPU_KERNEL(void rotary_append_nodes(const RotaryAppend& p, int64_t begin, int64_t end))

}  // namespace dspark
