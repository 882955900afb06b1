// The N best nodes of a tree of candidates and paths: expansion level by level, for `glm_tree`.
//
// Nodes kept so far are ordered by (depth, score desc, token, parent's order). A level adds the
// children of the last level; then the N best of all stay, by (score desc, depth, token, parent's
// order), and with many members a few others, which is found out faster. In this order the N best
// are written at the end, as far as min_score allows. A dropped node cannot return, nor can its
// descendants, which never score higher. What the paths hold below the heads is added in one go,
// see tails.h.

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

// Appends the child of a key as number `place` of the new last level.
template <class G, class Team>
DSPARK_HOST_DEVICE void append_child(const Team& team, int paths, const Level& level, int place,
                                     uint64_t key, const Stay& stay, TreeScratch& s) {
  const auto rest = static_cast<uint32_t>(key & kRest);
  if (team.lane() == 0) {
    const int f = bits_parent(rest), source = bits_source(rest), node = stay.nodes + place;
    const int p = source - level.candidates;
    s.token[node] = p < 0 ? level.ids[source] : level.paths[p * level.stride];
    s.score[node] = score_of<G>(key);
    s.depth[node] = static_cast<uint8_t>(level.depth + 1);
    s.parent[node] = static_cast<int16_t>(stay.place(s, level.start + f));
    s.row[node] = static_cast<uint8_t>(f);
    s.source[node] = static_cast<uint8_t>(source);
  }
  for (int p = team.lane(); p < paths; p += team.size()) {
    if (s.path_child[p] == rest) s.path_node[p] = place;
  }
}

// Puts the keys of the N best nodes behind kRoom in s.key, best first, and their places into
// s.moved; returns how many stay: those which score at least min_score times what all better ones
// sum up to.
template <class G>
DSPARK_HOST_DEVICE int rank_nodes(G& g, const GlmShape& shape, int kept, TreeScratch& s) {
  const float bar = kCountScores<G> ? s.counts.range.bar : 0;
  for (int i = g.lane(); i < kept; i += g.size()) {
    if (s.score[i] > bar) s.key[g.add(&s.ranked, 1)] = key_of<G>(s.score[i], i);
  }
  g.sync();
  const int ranked = s.ranked, most = ranked < shape.nodes ? ranked : shape.nodes;
  sort(g, s.key, ranked, [&](const auto& team, int place, uint64_t key) {
    if (team.lane() != 0 || place >= shape.nodes) return;
    s.key[kRoom + place] = key;
    s.moved[key & kRest] = static_cast<int16_t>(place);
  });
  if (shape.min_score == 0) return most;
  int stay = 0;
  for (float sum = 0; stay < most; ++stay) {
    const float score = score_of<G>(s.key[kRoom + stay]);
    if (score < shape.min_score * sum) break;
    sum += score;
  }
  return stay;
}

template <class G>
DSPARK_HOST_DEVICE void write_tree(G& g, const GlmShape& shape, int kept, TreeScratch& s,
                                   const GlmOutputs& out) {
  const int stay = rank_nodes(g, shape, kept, s), words = (shape.nodes + 63) / 64;
  for (int place = g.lane(); place < shape.nodes; place += g.size()) {
    const bool used = place < stay;  // then so are its ancestors
    const int node = used ? static_cast<int>(s.key[kRoom + place] & kRest) : 0;
    const int parent = used ? s.parent[node] : -1;
    out.tokens[place] = used ? s.token[node] : 0;
    out.parents[place] = parent < 0 ? -1 : s.moved[parent];
    out.depths[place] = used ? s.depth[node] : 0;
    out.scores[place] = used ? s.score[node] : 0.0f;
  }
  // by other members
  for (int place = g.lane() ^ g.size() / 2; place < shape.nodes; place += g.size()) {
    const int parent = place < stay ? s.parent[s.key[kRoom + place] & kRest] : -1;
    for (int word = 0; word < words; ++word) {
      uint64_t bits = place / 64 == word ? uint64_t{1} << (place % 64) : 0;
      for (int i = parent; i >= 0; i = s.parent[i]) {
        const int to = s.moved[i];
        if (to / 64 == word) bits |= uint64_t{1} << (to % 64);
      }
      out.ancestors[place * words + word] = static_cast<int64_t>(bits);
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
  if constexpr (G::template kMatrixUnit<T>) {
    if (shape.own_mix) {
      const auto row = [&](int j) { return in.mix + j * shape.rank; };
      copy_rows(g, shape, 2 * shape.rank, row, reinterpret_cast<T*>(work.mix),
                mix_pitch_of(shape.rank));
    }
  }
  if (g.lane() == 0) {
    s.token[0] = root;
    s.score[0] = 1;
    s.parent[0] = -1;
    s.depth[0] = s.row[0] = s.source[0] = 0;
    s.listed = s.ranked = 0;
  }
  clear(g, shape.min_score, s.counts);
  for (int p = g.lane(); p < shape.paths; p += g.size()) s.path_node[p] = 0;
  g.wait_for_packets();
  g.sync();

  if constexpr (G::template kMatrixUnit<T>) {
    if (shape.matrix_unit && shape.heads > 0) copy_levels(g, shape, in, 0, work);
  }
  if (!shape.matrix_unit) prefetch_rows(g, shape, in);
  int depth = 0, start = 0, kept = 1;
  for (; depth < shape.heads && start < kept; ++depth) {
    if (!shape.matrix_unit) transpose_level(g, shape, in, depth, work);
    const bool has_paths = depth < shape.path_length;
    const auto meanwhile = [&] {
      if (depth == 0) {
        prepare_levels(g, shape, in, work);
        rank_tokens(g, shape, in, work.inverse_tokens, s);
      }
      if (has_paths) match_paths(g, shape, start, in.paths + depth, in.path_scores + depth, s);
    };
    const int expanded = expand_level(g, shape, in, depth, start, kept, work, s, meanwhile);
    const Level level{depth,
                      start,
                      expanded,
                      shape.candidates,
                      pitch,
                      expanded * pitch,
                      work.inverse_candidates,
                      in.ids + depth * shape.candidates,
                      has_paths ? in.paths + depth : nullptr,
                      shape.path_length};
    const int paths = has_paths ? shape.paths : 0;
    if (paths > 0) add_path_children(g, shape, level, work.scores, s);
    const auto append = [&](const auto& team, int place, uint64_t key, const Stay& stay) {
      append_child<G>(team, paths, level, place, key, stay, s);
    };
    const Stay stay = keep_best(g, shape, level, kept, level.extra + paths, work.scores, s, append);
    start = stay.nodes;
    kept = stay.nodes + stay.children;
  }
  g.wait_for_packets();  // of a level that was not reached
  kept = add_tails(g, shape, in.paths, in.path_scores, depth, start, kept, work, s);
  write_tree(g, shape, kept, s, out);
}

}  // namespace dspark
