// What the paths propose below the heads, where children have no other source: all those levels at
// once, for `glm_tree`.

#pragma once

#include "common/keep.h"

namespace dspark {

// Child p · length + j is the token of path p at `depth` + j, below the last level's nodes. Paths
// that have not parted yet share a node, which the first of them stands for: only it has a score in
// work.scores.
struct Tails {
  int depth, start;       // of the last level, and its first node
  int length;             // levels below it
  uint32_t inverse;       // of length
  const int64_t* tokens;  // [P], of the first of these levels; the next ones one further on
  const float* path_scores;
  int stride;    // of both
  float* reach;  // [P][length], scores along each path
  int* order;  // [P][length], among the nodes of that depth: by (score desc, token, parent's order)
};

// The path of a child, and how many levels below the first of its children.
template <class G>
DSPARK_FORCE_INLINE int path_of(const Tails& tails, int child) {
  return quotient(child, tails.inverse);
}
template <class G>
DSPARK_FORCE_INLINE int steps_of(const Tails& tails, int child) {
  return child - path_of<G>(tails, child) * tails.length;
}

// The first of the paths which share a node with path p there, found by a team.
template <class G, class Team>
DSPARK_HOST_DEVICE int first_equal(Team& team, const TreeScratch& s, int p, int j) {
  int first = p;
  for (int q = team.lane(); q < p; q += team.size()) {
    if (s.apart[q][p] > j && q < first) first = q;
  }
  return team.min(first);
}

template <class G>
DSPARK_FORCE_INLINE int64_t token_of(const Tails& tails, int child) {
  return tails.tokens[path_of<G>(tails, child) * tails.stride + steps_of<G>(tails, child)];
}

// (depth, order), then the path.
template <class G>
DSPARK_HOST_DEVICE uint32_t child_rest(const Tails& tails, const TreeScratch&, int child) {
  const int p = path_of<G>(tails, child), j = child - p * tails.length;
  return kChild | static_cast<uint32_t>(j << 16 | tails.order[child] << 8 | p);
}
DSPARK_FORCE_INLINE int child_of(const Tails& tails, uint32_t rest) {
  return static_cast<int>(rest & 255) * tails.length + (rest >> 16 & 255);
}

// s.apart[q][p], q <= p: how many levels below the heads paths q and p are one; p alone: until it
// ends.
template <class G>
DSPARK_HOST_DEVICE void compare_paths(G& g, const GlmShape& shape, const Tails& tails,
                                      TreeScratch& s) {
  for (int item = g.lane(); item < shape.paths * shape.paths; item += g.size()) {
    const int q = item / shape.paths, p = item % shape.paths;
    const bool together = s.path_node[p] >= 0 && s.path_node[p] == s.path_node[q];
    s.apart[q][p] = together ? tails.length : 0;
  }
  g.sync();
  auto team = g.team();
  for (int child = team.index(); child < shape.paths * tails.length; child += team.count()) {
    const int p = path_of<G>(tails, child), j = steps_of<G>(tails, child);
    const int64_t token = token_of<G>(tails, child);
    if (team.lane() == 0 && (token < 0 || token >= shape.vocab)) g.lower(&s.apart[p][p], j);
    for (int q = team.lane(); q < p; q += team.size()) {
      if (tails.tokens[q * tails.stride + j] != token) g.lower(&s.apart[q][p], j);
    }
  }
  g.sync();
}

// The scores along each path: of a shared node the largest, and none above the parent's.
template <class G>
DSPARK_HOST_DEVICE void score_paths(G& g, const GlmShape& shape, const Tails& tails,
                                    const GlmWorkspace& work, TreeScratch& s) {
  auto team = g.team();
  const int children = shape.paths * tails.length;
  for (int child = team.index(); child < children; child += team.count()) {
    const int p = path_of<G>(tails, child), j = steps_of<G>(tails, child);
    float best = 0;
    for (int q = team.lane(); q < shape.paths && j < s.apart[p][p]; q += team.size()) {
      const float own = tails.path_scores[q * tails.stride + j];  // NaN is not above
      if (j < (q < p ? s.apart[q][p] : s.apart[p][q]) && own > best) best = own;
    }
    best = team.max(best);
    if (team.lane() == 0) work.scores[child] = best;
  }
  g.sync();
  for (int child = team.index(); child < children; child += team.count()) {
    const int p = path_of<G>(tails, child), j = steps_of<G>(tails, child);
    const bool alone = team.size() == 1;  // who has done the one above
    float least = s.path_node[p] >= 0 ? s.score[tails.start + s.path_node[p]] : 0;
    if (alone && j > 0) least = tails.reach[child - 1];
    for (int i = alone ? j : team.lane(); i <= j; i += team.size()) {
      least = fminf(least, work.scores[child - j + i]);
    }
    least = team.min(least);
    if (team.lane() == 0) tails.reach[child] = least;
  }
  g.sync();
  for (int child = team.index(); child < children; child += team.count()) {
    const int p = path_of<G>(tails, child);
    const bool stands = first_equal<G>(team, s, p, steps_of<G>(tails, child)) == p;
    if (team.lane() != 0) continue;
    const float own = stands ? tails.reach[child] : 0;
    work.scores[child] = own;
    count_score(g, s.counts.range, own, 1, s.counts);
    tails.order[child] = 0;
  }
  g.sync();
}

// tails.order: counts, for every pair of paths that have parted, the node that comes first.
template <class G>
DSPARK_HOST_DEVICE void order_paths(G& g, const GlmShape& shape, const Tails& tails,
                                    const GlmWorkspace& work, TreeScratch& s) {
  auto team = g.team();
  for (int other = team.index(); other < shape.paths * tails.length; other += team.count()) {
    const int p = path_of<G>(tails, other), j = steps_of<G>(tails, other);
    for (int q = team.lane(); q < p; q += team.size()) {
      const int one = q * tails.length + j;
      if (j < s.apart[q][p] || tails.reach[one] + tails.reach[other] == 0) continue;
      int back = 0;  // equal nodes are in the order of their parents
      const auto score = [&](int child) { return tails.reach[child - back]; };
      const auto token = [&](int path) { return tails.tokens[path * tails.stride + j - back]; };
      while (back < j && score(one) == score(other) && token(q) == token(p)) ++back;
      const bool q_first = score(one) != score(other) ? score(one) > score(other)
                           : token(q) != token(p)     ? token(q) < token(p)
                                                      : s.path_node[q] < s.path_node[p];
      const int first = q_first ? one : other, next = q_first ? other : one;
      if (work.scores[first] > 0) g.add(&tails.order[next], 1);
    }
  }
  g.sync();
}

// Appends the children that stay by (depth, order).
template <class G>
DSPARK_HOST_DEVICE void append_tails(G& g, const Tails& tails, const Stay& stay, TreeScratch& s) {
  int* const node_of = reinterpret_cast<int*>(tails.reach);
  sort(g, s.key, stay.children, [&](const auto& team, int place, uint64_t value) {
    if (team.lane() != 0) return;
    const auto rest = static_cast<uint32_t>(value >> kRestBits);
    const int child = child_of(tails, rest), node = stay.nodes + place;
    node_of[child] = node;
    s.moved[place] = child;
    s.token[node] = token_of<G>(tails, child);
    s.score[node] = score_of<G>((value & kRest) << kRestBits);
    s.depth[node] = tails.depth + 1 + steps_of<G>(tails, child);
  });
  auto team = g.team();
  for (int i = team.index(); i < stay.children; i += team.count()) {
    const int child = s.moved[i], p = path_of<G>(tails, child), j = steps_of<G>(tails, child);
    int parent = stay.place(s, tails.start + s.path_node[p]);
    if (j > 0) parent = node_of[first_equal<G>(team, s, p, j - 1) * tails.length + j - 1];
    if (team.lane() == 0) s.parent[stay.nodes + i] = static_cast<int16_t>(parent);
  }
  g.sync();
}

// Adds what the paths hold below the last level, nodes start .. kept - 1, to the N best; returns
// how many nodes there are then.
template <class G>
DSPARK_HOST_DEVICE int add_tails(G& g, const GlmShape& shape, const int64_t* paths,
                                 const float* path_scores, int depth, int start, int kept,
                                 const GlmWorkspace& work, TreeScratch& s) {
  // a node among the N best is less than N deep
  const int deepest = shape.path_length < shape.nodes ? shape.path_length : shape.nodes - 1;
  const int length = deepest - depth;
  if (length <= 0 || start == kept) return kept;
  const Tails tails{depth,
                    start,
                    length,
                    inverse_of(length),
                    paths + depth,
                    path_scores + depth,
                    shape.path_length,
                    work.even,
                    reinterpret_cast<int*>(work.odd)};
  compare_paths(g, shape, tails, s);
  score_paths(g, shape, tails, work, s);
  order_paths(g, shape, tails, work, s);
  const auto turn = [&](const auto& team, int place, uint64_t key, const Stay&) {
    const uint64_t turned = (key & kRest) << kRestBits | key >> kRestBits;  // (depth, order) first
    if (team.lane() == 0) s.key[place] = turned;
  };
  const Stay stay = keep_best(g, shape, tails, kept, shape.paths * length, work.scores, s, turn);
  append_tails(g, tails, stay, s);
  return stay.nodes + stay.children;
}

}  // namespace dspark
