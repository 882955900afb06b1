// Which tokens stand before each draw, for `seen_tokens`.

#pragma once

#include "common/group.h"

namespace dspark {

struct SeenTokens {        // all draws
  const int64_t* history;  // [B, S]
  int64_t stride;
  const int32_t* lengths;                     // [B]
  int capacity, nodes;                        // nodes of a tree; 1 where there are none
  const int64_t *tokens, *ancestors, *slots;  // [B, N], [B, N, ceil(N / 64)], [T]; or null
  int64_t vocab_size;
  int words;      // of 64 tokens
  int64_t* seen;  // [T, words]
};

// The words of one draw from `first` on, `most` at most. bits: room for twice as many of 32 bits.
template <class G>
DSPARK_HOST_DEVICE void seen_tokens_row(G& g, const SeenTokens& p, int64_t row, int first, int most,
                                        uint32_t* bits) {
  const int count = p.words - first < most ? p.words - first : most;
  for (int i = g.lane(); i < 2 * count; i += g.size()) bits[i] = 0;
  g.sync();
  const int64_t slot = p.slots != nullptr ? p.slots[row] : row, b = slot / p.nodes;
  const int64_t start = int64_t{first} * 64, end = start + int64_t{count} * 64;
  const int64_t stop = end < p.vocab_size ? end : p.vocab_size;
  const auto note = [&](int64_t token) {
    if (token < start || token >= stop) return;
    const int bit = static_cast<int>(token - start);
    g.set_bits(bits + bit / 32, 1u << bit % 32);
  };
  const int given = p.lengths[b];
  const int length = given < p.capacity ? given : p.capacity;
  DSPARK_SIDE_BY_SIDE(4)
  for (int i = g.lane(); i < length; i += g.size()) note(p.history[b * p.stride + i]);
  if (p.tokens != nullptr) {
    const int64_t* ancestors = p.ancestors + slot * ((p.nodes + 63) / 64);
    for (int j = g.lane(); j < p.nodes; j += g.size()) {
      if (ancestors[j / 64] >> j % 64 & 1) note(p.tokens[b * p.nodes + j]);
    }
  }
  g.sync();
  for (int i = g.lane(); i < count; i += g.size()) {
    const uint64_t high = bits[2 * i + 1];
    p.seen[row * p.words + first + i] = static_cast<int64_t>(high << 32 | bits[2 * i]);
  }
}

}  // namespace dspark
