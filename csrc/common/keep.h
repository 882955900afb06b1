// The N best of the nodes kept so far and of new children, for `glm_tree`.
//
// Children are those of one Level, or the Tails of paths: numbers from 0 on, each with a score, 0
// where there is no child. Of a child, child_depth, child_token and child_parent<G>(children, s,
// child) tell the place in the tree; its parent by the order among the nodes of that depth.

#pragma once

#include "common/level.h"

namespace dspark {

// Lists the nodes kept (as ~index) and the children that may be among the N best, of scores[0 ..
// end - 1], with the counts of their first digits; returns how many.
template <class G>
DSPARK_HOST_DEVICE int list_items(G& g, const GlmShape& shape, int kept, int end,
                                  const float* scores, int* items, TreeScratch& s) {
  using V = typename G::Vector;
  constexpr int kBits = 32, kParts = kBits / G::kWidth;
  // with N nodes kept, a child must be above the lowest of them: on a tie the lower depth wins
  const V bar = G::splat(kept < shape.nodes ? 0.0f : G::bits_float(s.lowest));
  const V least = G::splat(shape.min_score);
  clear(g, s.select);
  int found = kept, base = 0;
  do {
    uint32_t bits = 0;  // of the scores first .., one part every g.size() * kWidth
    const int step = g.size() * G::kWidth, first = base + g.lane() * G::kWidth;
    for (int part = 0; part < kParts; ++part) {
      const int from = first + part * step, left = end - from;
      if (left <= 0) break;
      const V score =
          left < G::kWidth ? G::load_first(scores + from, left) : G::load_own(scores + from);
      bits |= (G::bits(score > bar) & ~G::bits(score < least)) << (part * G::kWidth);
    }
    int total, to = found + g.scan(count_bits(bits), &total);
    for (; bits != 0; bits &= bits - 1) {
      const int bit = lowest_bit(bits);
      const int item = first + bit / G::kWidth * step + bit % G::kWidth;
      items[to++] = item;
      g.add(&s.select.histogram[score_digit<G>(scores[item], 0)], 1);
    }
    found += total;
    base += g.size() * kBits;
  } while (base < end);
  for (int i = g.lane(); i < kept; i += g.size()) {
    items[i] = ~i;
    g.add(&s.select.histogram[score_digit<G>(s.score[i], 0)], 1);
  }
  g.sync();
  return found;
}

// Digit `place` of an item's key (score desc, depth, token, parent's order): 3, 1, 7 and 1 digits.
constexpr int kKeyDigits = 12;
template <class G, class Children>
DSPARK_HOST_DEVICE int key_digit(const Children& children, const TreeScratch& s,
                                 const float* scores, int item, int place) {
  const bool node = item < 0;
  if (place < 3) return score_digit<G>(node ? s.score[~item] : scores[item], place);
  if (place == 3) return node ? s.depth[~item] : child_depth<G>(children, item);
  if (place < 11) {
    const int64_t token = node ? s.token[~item] : child_token<G>(children, item);
    return static_cast<int>(token >> (kDigitBits * (10 - place))) & (kBins - 1);
  }
  return node ? s.parent[~item] + 1 : child_parent<G>(children, s, item);
}

// Where a node that was taken goes when the others are dropped; of `kept`, how many were.
DSPARK_FORCE_INLINE int place_of(const TreeScratch& s, int node) {
  int place = 0;
  for (int word = 0; word < node / 32; ++word) {
    place += count_bits(static_cast<uint32_t>(s.taken[word]));
  }
  if (node % 32 == 0) return place;
  return place + count_bits(static_cast<uint32_t>(s.taken[node / 32]) << (32 - node % 32));
}

// Closes the gaps that nodes leave which were not taken. Without a sync at the end.
template <class G>
DSPARK_HOST_DEVICE void drop_nodes(G& g, int kept, TreeScratch& s) {
  if (g.lane() == 0) s.lowest = INT32_MAX;
  for (int first = 0; first < kept; first += g.size()) {
    const int i = first + g.lane();
    const bool taken = i < kept && s.taken[i / 32] >> (i % 32) & 1;
    int64_t token = 0;
    float score = 0;
    int parent = 0, depth = 0;
    if (taken) token = s.token[i], score = s.score[i], parent = s.parent[i], depth = s.depth[i];
    g.sync();
    if (taken) {
      const int to = place_of(s, i);
      s.token[to] = token, s.score[to] = score, s.depth[to] = depth;
      s.parent[to] = parent < 0 ? -1 : place_of(s, parent);
      g.lower(&s.lowest, static_cast<int>(G::float_bits(score)));
    }
  }
}

// Keeps the N best of `kept` nodes and the children of scores[0 .. end - 1]. Returns how many of
// the nodes stay, place_of says where; the children that do are the last 31 bits of the first
// s.children of s.order, before them their child_order. Without a sync at the end.
template <class G, class Children>
DSPARK_HOST_DEVICE int keep_best(G& g, const GlmShape& shape, const Children& children, int kept,
                                 int end, const GlmWorkspace& work, TreeScratch& s) {
  const float* scores = work.scores;
  for (int i = g.lane(); i < kMaxNodes / 32; i += g.size()) s.taken[i] = 0;
  if (g.lane() == 0) s.children = 0;
  const int items = list_items(g, shape, kept, end, scores, work.items, s);
  const auto score = [&](int item) { return item < 0 ? s.score[~item] : scores[item]; };
  select_smallest(
      g, work.items, work.spare, items, shape.nodes, kKeyDigits, s.select,
      [&](int item) { return ~G::float_bits(score(item)); },
      [&](int item, int place) { return key_digit<G>(children, s, scores, item, place); },
      [&](int item) {
        if (item < 0) {
          g.add(&s.taken[~item / 32], static_cast<int>(1u << (~item % 32)));
        } else {
          const uint64_t order = child_order<G>(children, scores[item], item);
          s.order[g.add(&s.children, 1)] = order << 32 | static_cast<uint32_t>(item);
        }
      });
  drop_nodes(g, kept, s);
  return place_of(s, kept);
}

}  // namespace dspark
