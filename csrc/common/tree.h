// The N best nodes of a tree of candidates and paths: expansion level by level, for `glm_tree`.
//
// Nodes kept so far are ordered by (depth, score desc, token, parent's order). A level adds the
// children of the last level; then only the N best of all stay, by (score desc, depth, token,
// parent's order), in which order they are written at the end, as far as min_score allows. A
// dropped node cannot return, nor can its descendants, which never score higher. What the paths
// hold below the heads is added in one go, see tails.h.

#pragma once

#include "common/tails.h"

namespace dspark {

struct GlmOutputs {  // of one request
  int64_t* tokens;   // [N]
  int32_t *parents, *depths;
  int64_t* ancestors;  // [N, ceil(N / 64)]
  float* scores;
  int32_t* num_nodes;
};

// Appends the children that stay, sorted, as the new last level; returns how many nodes there are.
template <class G>
DSPARK_HOST_DEVICE int append_children(G& g, const GlmShape& shape, const Level& level, int stay,
                                       const float* scores, TreeScratch& s) {
  const int count = s.children;
  sort(
      g, s.order, count,
      [&](uint64_t a, uint64_t b) {
        if (a >> 32 != b >> 32 || a == b) return a < b;
        const int one = static_cast<int>(a & INT32_MAX), other = static_cast<int>(b & INT32_MAX);
        const int64_t token = child_token<G>(level, one), right = child_token<G>(level, other);
        if (token != right) return token < right;
        return child_parent<G>(level, s, one) < child_parent<G>(level, s, other);
      },
      [&](int place, uint64_t value) {
        const int child = static_cast<int>(value & INT32_MAX), node = stay + place;
        const int f = child_parent<G>(level, s, child);
        s.child[place] = child;
        s.token[node] = child_token<G>(level, child);
        s.score[node] = scores[child];
        s.depth[node] = level.depth + 1;
        s.parent[node] = place_of(s, level.start + f);
        s.row[node] = f;
        s.source[node] =
            child < level.extra ? child - f * level.pitch : child - level.extra + shape.candidates;
        g.lower(&s.lowest, static_cast<int>(G::float_bits(scores[child])));
      });
  if (shape.paths > 0) {
    auto team = g.team();
    for (int p = team.index(); p < shape.paths; p += team.count()) {
      int place = -1;
      for (int i = team.lane(); i < count; i += team.size()) {
        if (s.child[i] == s.path_child[p]) place = i;
      }
      place = team.max(place);
      if (team.lane() == 0) s.path_node[p] = place;
    }
    g.sync();
  }
  return stay + count;
}

// Puts the nodes' places, best first, into s.moved; returns how many stay: those which score at
// least min_score times what all better ones sum up to.
template <class G>
DSPARK_HOST_DEVICE int rank_nodes(G& g, const GlmShape& shape, int kept, TreeScratch& s) {
  for (int i = g.lane(); i < shape.nodes; i += g.size()) {
    s.order[i] = i < kept ? uint64_t{~G::float_bits(s.score[i])} << 32 | i : 0;
    s.moved[i] = i;
  }
  g.sync();
  sort(
      g, s.order, kept, [](uint64_t a, uint64_t b) { return a < b; },
      [&](int place, uint64_t value) {
        const int node = static_cast<int>(value & INT32_MAX);
        s.moved[node] = place;
        s.row[place] = static_cast<int>(~(value >> 32));  // the score's bits
      });
  if (shape.min_score == 0) return kept;
  int stay = 0;
  for (float sum = 0; stay < kept; ++stay) {
    const float score = G::bits_float(s.row[stay]);
    if (score < shape.min_score * sum) break;
    sum += score;
  }
  return stay;
}

template <class G>
DSPARK_HOST_DEVICE void write_tree(G& g, const GlmShape& shape, int kept, TreeScratch& s,
                                   const GlmOutputs& out) {
  const int stay = rank_nodes(g, shape, kept, s);
  for (int i = g.lane(); i < shape.nodes; i += g.size()) {
    const int to = s.moved[i];
    const bool used = to < stay;
    out.tokens[to] = used ? s.token[i] : 0;
    out.parents[to] = used && s.parent[i] >= 0 ? s.moved[s.parent[i]] : -1;
    out.depths[to] = used ? s.depth[i] : 0;
    out.scores[to] = used ? s.score[i] : 0.0f;
  }
  const int words = (shape.nodes + 63) / 64;
  for (int node = g.lane(); node < shape.nodes; node += g.size()) {
    const bool used = s.moved[node] < stay;  // then so are its ancestors
    for (int word = 0; word < words; ++word) {
      uint64_t bits = 0;
      for (int i = node; i >= 0; i = used ? s.parent[i] : -1) {
        const int to = s.moved[i];
        if (to / 64 == word) bits |= uint64_t{1} << (to % 64);
      }
      out.ancestors[s.moved[node] * words + word] = static_cast<int64_t>(bits);
    }
  }
  if (g.lane() == 0) *out.num_nodes = stay;
}

template <class G, typename T>
DSPARK_HOST_DEVICE void build_tree(G& g, const GlmShape& shape, const GlmInputs<T>& in,
                                   const GlmWorkspace& work, TreeScratch& s,
                                   const GlmOutputs& out) {
  const int rank = padded(shape.rank), pitch = padded(shape.candidates);
  const int64_t root = *in.root;
  prefetch_levels(g, shape, in);
  if (!shape.matrix_unit) {
    // rows R .. 2R - 1 of mix become the columns from Rp on
    transpose(
        g, 1, rank + shape.rank, shape.rank, 2 * rank, work.mix,
        [&](int, int j) {
          const int row = j < shape.rank ? j : j < rank ? -1 : j - rank + shape.rank;
          return row < 0 ? nullptr : in.mix + row * shape.rank;
        },
        [](int, int) { return 1.0f; });
  }
  if (g.lane() == 0) {
    s.token[0] = root;
    s.score[0] = 1;
    s.parent[0] = -1;
    s.depth[0] = s.row[0] = s.source[0] = 0;
    s.lowest = static_cast<int>(G::float_bits(1.0f));
  }
  for (int p = g.lane(); p < shape.paths; p += g.size()) s.path_node[p] = 0;
  g.sync();

  int depth = 0, start = 0, kept = 1;
  for (; depth < shape.heads && start < kept; ++depth) {
    const bool has_paths = depth < shape.path_length;
    if (depth == 0 || shape.levels <= 1) prepare_levels(g, shape, in, depth, work);
    const int expanded = expand_level(g, shape, in, depth, start, kept, work, s);
    const int64_t* ids = in.ids + depth * shape.candidates;
    const int extra = expanded * pitch;
    const Level level{depth, start, expanded,     pitch,
                      extra, ids,   s.path_token, work.inverse_candidates};
    GlmShape here = shape;  // without the paths where they have ended
    if (!has_paths) here.paths = 0;
    if (has_paths) {
      add_path_children(g, here, level, in.paths + depth, in.path_scores + depth, work.scores, s);
    }
    start = keep_best(g, here, level, kept, level.extra + here.paths, work, s);
    kept = append_children(g, here, level, start, work.scores, s);
  }
  kept = add_tails(g, shape, in.paths, in.path_scores, depth, start, kept, work, s);
  write_tree(g, shape, kept, s, out);
}

}  // namespace dspark
