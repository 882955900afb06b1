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

// Appends the children that stay as the new last level.
template <class G>
DSPARK_HOST_DEVICE void append_children(G& g, int paths, const Level& level, const Stay& stay,
                                        TreeScratch& s) {
  for (int place = g.lane(); place < stay.children; place += g.size()) {
    const auto rest = static_cast<uint32_t>(s.order[place] & kRest);
    const int f = bits_parent(rest), source = bits_source(rest), node = stay.nodes + place;
    const int p = source - level.candidates;
    s.token[node] = p < 0 ? level.ids[source] : level.paths[p * level.stride];
    s.score[node] = score_of<G>(s.order[place]);
    s.depth[node] = level.depth + 1;
    s.parent[node] = place_of(s, level.start + f);
    s.row[node] = f;
    s.source[node] = source;
    for (int q = 0; q < paths; ++q) {
      if (s.path_child[q] == rest) s.path_node[q] = place;
    }
  }
  g.sync();
}

// Puts the nodes' places, best first, into s.moved; returns how many stay: those which score at
// least min_score times what all better ones sum up to.
template <class G>
DSPARK_HOST_DEVICE int rank_nodes(G& g, const GlmShape& shape, int kept, TreeScratch& s) {
  for (int i = g.lane(); i < shape.nodes; i += g.size()) {
    if (i < kept) s.key[i] = key_of<G>(s.score[i], i);
    s.moved[i] = i;
  }
  g.sync();
  sort(g, s.key, kept, [&](int place, uint64_t key) {
    s.moved[key & kRest] = place;
    s.order[place] = key;
  });
  if (shape.min_score == 0) return kept;
  int stay = 0;
  for (float sum = 0; stay < kept; ++stay) {
    const float score = score_of<G>(s.order[stay]);
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
DSPARK_HOST_DEVICE void build_tree(G& g, const GlmShape& shape, const GlmInputs<T>& given,
                                   const GlmWorkspace& work, TreeScratch& s,
                                   const GlmOutputs& out) {
  const int rank = padded(shape.rank), pitch = padded(shape.candidates);
  const int64_t root = *given.root;
  const GlmInputs<T> in = stage_inputs(g, shape, given, work.inputs);
  if (!shape.matrix_unit) {
    // rows R .. 2R - 1 of mix become the columns from Rp on
    transpose(
        g, 1, rank + shape.rank, shape.rank, 2 * rank, work.mix,
        [&](int, int j) {
          const int row = j < shape.rank ? j : j < rank ? -1 : j - rank + shape.rank;
          return row < 0 ? nullptr : in.mix + row * shape.rank;
        },
        [](int, int) { return 1.0f; });
  } else if (!shape.own_mix) {
    prefetch_numbers(g, in.mix, 2 * shape.rank * shape.rank);
  }
  if (g.lane() == 0) {
    s.token[0] = root;
    s.score[0] = 1;
    s.parent[0] = -1;
    s.depth[0] = s.row[0] = s.source[0] = s.listed = 0;
  }
  for (int p = g.lane(); p < shape.paths; p += g.size()) s.path_node[p] = 0;
  g.wait_for_packets();
  g.sync();

  if constexpr (G::template kMatrixUnit<T>) {
    if (shape.own_mix) {
      const auto row = [&](int j) { return in.mix + j * shape.rank; };
      copy_rows(g, shape, 2 * shape.rank, row, reinterpret_cast<T*>(work.mix));
    }
    if (shape.matrix_unit && shape.heads > 0) copy_levels(g, shape, in, 0, work);
  }
  if (!shape.matrix_unit) prefetch_rows(g, shape, in);
  prepare_levels(g, shape, in, work);
  rank_tokens(g, shape, in, work.inverse_tokens, s);
  int depth = 0, start = 0, kept = 1;
  for (; depth < shape.heads && start < kept; ++depth) {
    if (!shape.matrix_unit) transpose_level(g, shape, in, depth, work);
    const int expanded = expand_level(g, shape, in, depth, start, kept, work, s);
    const Level level{depth,
                      start,
                      expanded,
                      shape.candidates,
                      pitch,
                      expanded * pitch,
                      work.inverse_candidates,
                      in.ids + depth * shape.candidates,
                      depth < shape.path_length ? in.paths + depth : nullptr,
                      shape.path_length};
    const int paths = level.paths != nullptr ? shape.paths : 0;
    if (paths > 0) add_path_children(g, shape, level, in.path_scores + depth, work.scores, s);
    for (int p = g.lane(); p < paths; p += g.size()) s.path_node[p] = -1;  // until its child stays
    const Stay stay = keep_best(g, shape, level, kept, level.extra + paths, work.scores, s);
    append_children(g, paths, level, stay, s);
    start = stay.nodes;
    kept = stay.nodes + stay.children;
  }
  g.wait_for_packets();  // of a level that was not reached
  kept = add_tails(g, shape, in.paths, in.path_scores, depth, start, kept, work, s);
  write_tree(g, shape, kept, s, out);
}

}  // namespace dspark
