// The N best of the nodes kept so far and of new children, for `glm_tree`.
//
// Children are those of one Level, or the Tails of paths: numbers from 0 on, each with a score, 0
// where there is no child. Of a child, child_depth, child_token and child_parent<G>(children, s,
// child) tell the place in the tree; its parent by the order among the nodes of that depth.

#pragma once

#include "common/level.h"

namespace dspark {

// Lists the nodes kept (as ~index) and the children that may be among the N best, of scores[0 ..
// end - 1]; returns how many. Without a sync at the end.
template <class G>
DSPARK_HOST_DEVICE int list_items(G& g, const GlmShape& shape, int kept, int end,
                                  const float* scores, int* items, TreeScratch& s) {
  using V = typename G::Vector;
  // with N nodes kept, a child must be above the lowest of them: on a tie the lower depth wins
  float bar = kept < shape.nodes ? 0.0f : 1.0f;
  for (int i = g.lane(); i < kept; i += g.size()) {
    items[i] = ~i;
    if (kept == shape.nodes && s.score[i] < bar) bar = s.score[i];
  }
  if (kept == shape.nodes) bar = g.min(bar);
  int found = kept;
  for (int base = 0; base < end; base += g.size() * G::kWidth) {
    const int first = base + g.lane() * G::kWidth, left = end - first;
    uint32_t bits = 0;
    if (left > 0) {
      const V score =
          left < G::kWidth ? G::load_first(scores + first, left) : G::load_own(scores + first);
      bits = G::bits(score > G::splat(bar)) & ~G::bits(score < G::splat(shape.min_score));
    }
    int total, to = found + g.scan(count_bits(bits), &total);
    for (int i = first; bits != 0; ++i, bits >>= 1) {
      if (bits & 1) items[to++] = i;
    }
    found += total;
  }
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

// Drops the nodes that were not taken and closes the gaps; returns how many stay.
template <class G>
DSPARK_HOST_DEVICE int drop_nodes(G& g, int kept, TreeScratch& s) {
  int stay = 0;
  for (int first = 0; first < kept; first += g.size()) {
    const int i = first + g.lane();
    const bool taken = i < kept && s.moved[i] >= 0;
    int64_t token = 0;
    float score = 0;
    int parent = 0, depth = 0, total;
    if (taken) token = s.token[i], score = s.score[i], parent = s.parent[i], depth = s.depth[i];
    const int to = stay + g.scan(taken, &total);
    if (taken) s.moved[i] = to;
    g.sync();
    if (taken) {
      s.token[to] = token, s.score[to] = score, s.depth[to] = depth;
      s.parent[to] = parent < 0 ? -1 : s.moved[parent];
    }
    stay += total;
    g.sync();
  }
  return stay;
}

// Keeps the N best of `kept` nodes and the children of scores[0 .. end - 1]. Returns how many of
// the nodes stay, s.moved says where; the children that do are the first s.children of s.child.
template <class G, class Children>
DSPARK_HOST_DEVICE int keep_best(G& g, const GlmShape& shape, const Children& children, int kept,
                                 int end, const GlmWorkspace& work, TreeScratch& s) {
  const float* scores = work.scores;
  const int items = list_items(g, shape, kept, end, scores, work.items, s);
  for (int i = g.lane(); i < kept; i += g.size()) s.moved[i] = -1;
  if (g.lane() == 0) s.children = 0;
  g.sync();
  select_smallest(
      g, work.items, work.spare, items, shape.nodes, kKeyDigits, s.select,
      [&](int item, int place) { return key_digit<G>(children, s, scores, item, place); },
      [&](int item) {
        if (item < 0) {
          s.moved[~item] = 0;
        } else {
          s.child[g.add(&s.children, 1)] = item;
        }
      });
  return drop_nodes(g, kept, s);
}

}  // namespace dspark
