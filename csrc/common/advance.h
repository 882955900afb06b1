// The end of a step, for `advance_step`: what was emitted joins the history.

#pragma once

#include "common/group.h"
#include "common/unit.h"

namespace dspark {

constexpr int kMaxKept = 4;

// One row of [T, D] per request goes to [B, D]; strides and sizes in bytes.
struct KeptRows {
  const char* from;
  char* to;
  int64_t from_stride, to_stride, bytes;
};

struct AdvanceStep {                         // all requests
  const int64_t* tokens;                     // [B, columns]
  const int32_t *num_tokens, *node, *limit;  // [B]
  const int64_t* rows;                       // [B, nodes], or null: request · nodes + node
  const int64_t* stop;                       // [num_stops]
  int columns, nodes, num_stops;
  int64_t total_rows;
  int64_t* history;  // [B, capacity]
  int64_t history_stride, capacity;
  int32_t *lengths, *cache_seqlens;  // [B]
  int64_t* root;                     // [B]
  uint8_t* done;                     // [B]
  int32_t* num_emitted;              // [B]
  int num_kept, packet_bytes;
  KeptRows kept[kMaxKept];
};

template <int kBytes, class G>
DSPARK_HOST_DEVICE void copy_bytes(G& g, const char* from, char* to, int64_t bytes) {
  using Piece = Unit<kBytes>;
  for (int64_t i = g.lane(); i < bytes / kBytes; i += g.size()) {
    reinterpret_cast<Piece*>(to)[i] = reinterpret_cast<const Piece*>(from)[i];
  }
}

template <class G>
DSPARK_HOST_DEVICE void advance_request(G& g, const AdvanceStep& p, int64_t b) {
  const bool was_done = p.done[b] != 0;
  const int64_t length = p.lengths[b], room = p.capacity - length;
  const int64_t most = was_done ? 0 : room < p.columns ? room : p.columns;
  const int64_t given = p.num_tokens[b] < most ? p.num_tokens[b] : most;
  const int count = given > 0 ? static_cast<int>(given) : 0;
  const int64_t* tokens = p.tokens + b * p.columns;
  int stopped = 0;
  for (int i = g.lane(); i < count; i += g.size()) {
    p.history[b * p.history_stride + length + i] = tokens[i];
    for (int k = 0; k < p.num_stops; ++k) stopped |= tokens[i] == p.stop[k];
  }
  stopped = g.max(stopped);  // and all have read what changes below
  if (g.lane() == 0) {
    p.num_emitted[b] = count;
    if (count > 0) p.root[b] = tokens[count - 1];
    p.lengths[b] = static_cast<int32_t>(length + count);
    p.cache_seqlens[b] += count;
    p.done[b] = was_done || stopped || length + count >= p.limit[b];
  }
  const int node = p.node[b];
  if (was_done || node < 0 || node >= p.nodes) return;
  const int64_t slot = b * p.nodes + node, row = p.rows == nullptr ? slot : p.rows[slot];
  if (row < 0 || row >= p.total_rows) return;
  for (int i = 0; i < p.num_kept; ++i) {
    const KeptRows& kept = p.kept[i];
    const char* from = kept.from + row * kept.from_stride;
    char* to = kept.to + b * kept.to_stride;
    if (p.packet_bytes == 16) copy_bytes<16>(g, from, to, kept.bytes);
    if (p.packet_bytes == 4) copy_bytes<4>(g, from, to, kept.bytes);
    if (p.packet_bytes == 1) copy_bytes<1>(g, from, to, kept.bytes);
  }
}

}  // namespace dspark
