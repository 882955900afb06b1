// Acceptance: the walk down the tree, what it emits, and where the cache entries of its path go.

#pragma once

#include "common/group.h"

namespace dspark {

// One request's tree, of `nodes` slots.
struct TreeView {
  const int64_t* tokens;
  const int32_t* parents;
  int nodes, used;  // used <= nodes
};

struct WalkOutputs {
  int32_t* path;    // [max_depth + 1]
  int64_t* tokens;  // [max_depth + 1]
  int32_t *num_accepted, *last_node;
};

// The trees of a batch, and where the results of their walks go.
struct WalkBatch {
  const int64_t *tokens, *target;  // [B, N]
  const int32_t* parents;          // [B, N]
  const int32_t* num_nodes;        // [B]
  int nodes, max_depth;
  int32_t* path;     // [B, max_depth + 1]
  int64_t* emitted;  // [B, max_depth + 1]
  int32_t *num_accepted, *last_node;

  DSPARK_FORCE_INLINE TreeView tree(int64_t b) const {
    const int used = num_nodes[b] < 1 ? 1 : num_nodes[b];
    return {tokens + b * nodes, parents + b * nodes, nodes, used < nodes ? used : nodes};
  }
  DSPARK_FORCE_INLINE WalkOutputs outputs(int64_t b) const {
    const int64_t row = b * (max_depth + 1);
    return {path + row, emitted + row, num_accepted + b, last_node + b};
  }
  // A walk deeper than the tree has nodes would only go round in circles.
  DSPARK_FORCE_INLINE int depth_limit() const {
    return max_depth < nodes - 1 ? max_depth : nodes - 1;
  }
};

// The path from the root along the target's draws: path[0 .. count - 1]; returns count. next has
// room for as many numbers as the tree for nodes.
template <class G>
DSPARK_HOST_DEVICE int accept_walk(G& g, const TreeView& tree, const int64_t* target, int max_depth,
                                   int* next, int32_t* path) {
  for (int i = g.lane(); i < tree.nodes; i += g.size()) next[i] = tree.nodes;
  g.sync();
  for (int i = g.lane(); i < tree.nodes; i += g.size()) {
    const int parent = tree.parents[i];
    const int64_t token = tree.tokens[i];
    if (i < tree.used && parent >= 0 && parent < tree.nodes && token == target[parent]) {
      g.lower(&next[parent], i);
    }
  }
  g.sync();
  int count = 0;
  for (int node = 0; node < tree.nodes && count <= max_depth; node = next[node]) {
    if (g.lane() == 0) path[count] = node;
    ++count;
  }
  g.sync();
  return count;
}

// The outputs of an accepted path of `count` nodes, which may be out.path itself.
template <class G>
DSPARK_HOST_DEVICE void write_walk(G& g, const TreeView& tree, const int64_t* target, int max_depth,
                                   const int32_t* path, int count, const WalkOutputs& out) {
  const int last = path[count - 1];
  for (int i = g.lane(); i <= max_depth; i += g.size()) {
    out.path[i] = i < count ? path[i] : -1;
    out.tokens[i] = i + 1 < count ? tree.tokens[path[i + 1]] : i + 1 == count ? target[last] : -1;
  }
  if (g.lane() == 0) {
    *out.num_accepted = count;
    *out.last_node = last;
  }
  g.sync();
}

// Where the slots of one request lie in a cache [B, S, ...] or [num_blocks, block_size, ...].
struct SlotMap {
  const int32_t* block_table;  // of the request; null: contiguous
  int64_t request, rows, row_slots, table_length;

  // The index of a slot in the first two dimensions; false if there is no such slot.
  DSPARK_FORCE_INLINE bool find(int64_t slot, int64_t* row, int64_t* place) const {
    if (slot < 0) return false;
    if (block_table == nullptr) {
      *row = request;
      *place = slot;
      return slot < row_slots;
    }
    const int64_t entry = slot / row_slots;
    if (entry >= table_length) return false;
    *row = block_table[entry];
    *place = slot % row_slots;
    return *row >= 0 && *row < rows;
  }
};

// Where the slots of a batch lie.
struct SlotBatch {
  const int32_t *seqlens, *block_table;  // [B]; [B, table_length] or null
  int64_t rows, row_slots, table_length;

  DSPARK_FORCE_INLINE SlotMap slots(int64_t b) const {
    const int32_t* table = block_table == nullptr ? nullptr : block_table + b * table_length;
    return {table, b, rows, row_slots, table_length};
  }
};

// Calls move(from_row, from_place, to_row, to_place) for every slot that compaction moves, in
// ascending order. Slots move down, so that no slot is overwritten before it was read.
template <class Move>
DSPARK_HOST_DEVICE void for_moves(const SlotMap& slots, const int32_t* path, int count,
                                  int64_t seqlen, const Move& move) {
  for (int i = 1; i < count; ++i) {
    int64_t from_row, from_place, to_row, to_place;
    if (path[i] != i && slots.find(seqlen + path[i], &from_row, &from_place) &&
        slots.find(seqlen + i, &to_row, &to_place)) {
      move(from_row, from_place, to_row, to_place);
    }
  }
}

}  // namespace dspark
