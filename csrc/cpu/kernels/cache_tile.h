// A tile of cache slots, for tree attention: which rows see its slots, where their keys and values
// are, and both as words that the products read.

#pragma once

#include "cpu/kernels/dot.h"
#include "cpu/tree_attention.h"

namespace dspark::DSPARK_ISA {

constexpr int kTileSlots = 48;  // even, and a multiple of rows_at_once

// Which slots a node sees, and where they are.
struct View {
  const TreeAttention& p;
  const TreeAttentionTask& task;
  const int64_t* ancestors;
  int64_t seqlen;
  int16_t depth[kMaxNodes];
  int64_t first_row, rows, lowest_depth = kMaxNodes, highest_depth = -1;

  View(const TreeAttention& p, const TreeAttentionTask& task) : p(p), task(task) {
    const int64_t words = (p.nodes + 63) / 64;
    ancestors = p.ancestors + task.request * p.nodes * words;
    seqlen = p.cache_seqlens[task.request];
    first_row = task.group * kGroupRows;
    rows = p.rows(task.request, task.group);
    for (int64_t node = 0; node < p.nodes; ++node) {
      depth[node] = -1;
      for (int64_t w = 0; w < words; ++w) {
        depth[node] += __builtin_popcountll(ancestors[node * words + w]);
      }
    }
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t own = depth[node_of(row)];
      lowest_depth = own < lowest_depth ? own : lowest_depth;
      highest_depth = own > highest_depth ? own : highest_depth;
    }
  }

  int64_t node_of(int64_t row) const { return p.node_of(task.request, first_row + row); }

  // The first slot that any row sees, and the first one that all rows see.
  int64_t first_seen() const { return p.window > 0 ? seqlen + lowest_depth - p.window + 1 : 0; }
  int64_t seen_by_all() const { return p.window > 0 ? seqlen + highest_depth - p.window + 1 : 0; }

  // Bit i: whether a row sees the slot begin + i, for i < 64.
  uint64_t seen(int64_t row, int64_t begin) const {
    const int64_t node = node_of(row), in_prefix = seqlen - begin;
    const uint64_t bits = low_bits(in_prefix) | ancestor_bits(node, -in_prefix);
    if (p.window == 0) return bits;
    uint64_t near = 0;
    for (int64_t i = 0; i < 64; ++i) {
      if (!(bits >> i & 1)) continue;
      const int64_t position = i < in_prefix ? i - in_prefix : depth[i - in_prefix];
      near |= (uint64_t)(position > depth[node] - p.window) << i;
    }
    return near;
  }

  static uint64_t low_bits(int64_t count) {
    return count <= 0 ? 0 : count >= 64 ? ~0ull : (1ull << count) - 1;
  }

  // 64 bits from bit `from` on, which may be negative, of the nodes on a node's path.
  uint64_t ancestor_bits(int64_t node, int64_t from) const {
    const int64_t words = (p.nodes + 63) / 64;
    uint64_t bits = 0;
    for (int64_t w = 0; w < words; ++w) {
      const uint64_t word = ancestors[node * words + w];
      const int64_t shift = w * 64 - from;
      if (shift > -64 && shift < 64) bits |= shift < 0 ? word >> -shift : word << shift;
    }
    return bits & low_bits(p.nodes - from);
  }

  // Whether a slot holds a token: those of nodes without one may hold anything.
  bool holds_token(int64_t slot) const {
    return slot < seqlen || p.has_token(task.request, slot - seqlen);
  }

  // The block that holds a slot, or -1.
  int64_t block_of(int64_t slot) const {
    if (p.block_table == nullptr) return task.request;
    const int64_t entry = task.request * p.blocks_per_request + slot / p.block_size;
    const int32_t block = p.block_table[entry];
    return block >= 0 && block < p.blocks ? block : -1;
  }
};

// Where the keys and values of a tile's slots are; null for absent ones, and after the last.
template <typename C>
struct Slots {
  const C *keys[kTileSlots], *values[kTileSlots + 1];
  uint64_t present;  // bits

  void find(const View& view, int64_t begin, int count) {
    const TreeAttention& p = view.p;
    present = 0;
    int64_t block = -1, inside = 0;
    for (int i = 0; i < count; ++i, ++inside) {
      if (i == 0 || inside == p.block_size) {
        block = view.block_of(begin + i);
        inside = (begin + i) % p.block_size;
      }
      const int64_t k = block * p.k_stride[0] + inside * p.k_stride[1];
      const int64_t v = block * p.v_stride[0] + inside * p.v_stride[1];
      const bool here = block >= 0 && view.holds_token(begin + i);
      keys[i] = here ? (const C*)p.k + k + view.task.kv_head * p.k_stride[2] : nullptr;
      values[i] = here ? (const C*)p.v + v + view.task.kv_head * p.v_stride[2] : nullptr;
      present |= (uint64_t)here << i;
    }
    for (int i = count; i < kTileSlots; ++i) keys[i] = values[i] = nullptr;
    values[kTileSlots] = nullptr;  // completes a pair
  }
};

// Values of kLanes elements from `e` on, zeros where there are none.
template <typename C>
DSPARK_NOINLINE void load_edge(const C* slot, int64_t e, int64_t dim, C* to) {
  for (int i = 0; i < kLanes; ++i) to[i] = slot != nullptr && e + i < dim ? slot[e + i] : C{};
}

template <typename Dot, typename C>
DSPARK_INLINE Floats value_words(const C* first, const C* second) {
  if constexpr (Dot::kPerWord == 1) {
    return load(first);
  } else {
    return pack_bf16(load_bf16(first), load_bf16(second));
  }
}

// Values of the tile as words across the lanes: [count / kPerWord][dim]. Those of the next tile are
// prefetched.
template <typename Dot, typename C>
DSPARK_INLINE void pack_values(const TreeAttention& p, const C* const* slots, const C* const* next,
                               int count, int dim, float* to) {
  for (int i = 0; i < count; i += Dot::kPerWord, to += dim) {
    const C *first = slots[i], *second = slots[i + Dot::kPerWord - 1];
    const C *soon = next[i], *later = next[i + Dot::kPerWord - 1];
    if (soon == nullptr) soon = first;
    if (later == nullptr) later = second;
    int e = 0;
    if (first != nullptr && second != nullptr) {
      for (; e + kLanes <= p.head_dim; e += kLanes) {
        __builtin_prefetch(soon + e, 0, 2);
        __builtin_prefetch(later + e, 0, 2);
        store(to + e, value_words<Dot>(first + e, second + e));
      }
    }
    for (C edge[2][kLanes]; e < dim; e += kLanes) {
      load_edge(first, e, p.head_dim, edge[0]);
      load_edge(second, e, p.head_dim, edge[1]);
      store(to + e, value_words<Dot>(edge[0], edge[1]));
    }
  }
}

// Rows of words.
struct Keys {
  const char* rows;
  ptrdiff_t stride;
};

// The tile's keys: in place where their words can be read as they are, else copied.
template <typename Dot, typename C>
DSPARK_INLINE Keys find_keys(const TreeAttention& p, const Slots<C>& slots, const C* const* next,
                             int count, int words, float* copy) {
  for (int i = 0; i < count; ++i) {
    if (next[i] != nullptr) prefetch_row((const char*)next[i], p.head_dim * sizeof(C));
  }
  const ptrdiff_t stride = p.k_stride[1] * sizeof(C);
  const bool in_place = Dot::template kHolds<C> && words * Dot::kPerWord == p.head_dim;
  const bool together = p.block_table == nullptr && slots.present == View::low_bits(count);
  if (in_place && together && count == kTileSlots) return {(const char*)slots.keys[0], stride};
  for (int i = 0; i < count; ++i) {
    const C* key = slots.keys[i];
    stage_words<Dot>(key, key == nullptr ? 0 : p.head_dim, words, copy + i * words);
  }
  return {(const char*)copy, words * (ptrdiff_t)sizeof(float)};
}

}  // namespace dspark::DSPARK_ISA
