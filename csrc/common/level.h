// One level of the tree under construction: its nodes, which of them are expanded, and the scores
// of their children, for `glm_tree`.

#pragma once

#include "common/glm.h"
#include "common/select.h"

namespace dspark {

struct TreeScratch {
  int64_t token[kMaxNodes];
  float score[kMaxNodes];
  int parent[kMaxNodes], depth[kMaxNodes];
  int row[kMaxNodes];     // of the last level's nodes: the parent's place in the level above
                          // at the end: the bits of all scores, best first
  int source[kMaxNodes];  // of nodes: the candidate that the token is, or a path behind these
  int moved[kMaxNodes];   // at the end: the nodes' places, best first
  int child[kMaxNodes];   // the children that stay
  uint64_t order[kMaxNodes];
  int taken[kMaxNodes / 32];  // which nodes stay, a bit each
  int lowest;                 // the bits of the lowest score of a node
  SelectScratch select;
  int path_node[kMaxPaths];         // each path's place in the last level, or -1
  int path_child[kMaxPaths];        // the child that stands for each path's next token, or -1
  int64_t path_token[kMaxPaths];    // that token, -1 where there is none
  float path_score[kMaxPaths];      // and its score, at most its parent's
  int apart[kMaxPaths][kMaxPaths];  // see compare_paths
  int children;
};

// The children of one level: child f · pitch + c is candidate c under node f of the last level,
// child extra + p the next token of path p where no candidate stands for it.
struct Level {
  int depth;            // of the last level, and the head of its children
  int start, expanded;  // nodes of the last level; those after the first `expanded` stay childless
  int pitch, extra;
  const int64_t *ids, *paths;  // [C] of the head; [P] next tokens
  uint32_t inverse;            // of pitch
};

template <class G>
DSPARK_HOST_DEVICE int child_depth(const Level& level, int) {
  return level.depth + 1;
}

template <class G>
DSPARK_HOST_DEVICE int64_t child_token(const Level& level, int child) {
  return child < level.extra ? level.ids[child - quotient(child, level.inverse) * level.pitch]
                             : level.paths[child - level.extra];
}

template <class G>
DSPARK_HOST_DEVICE int child_parent(const Level& level, const TreeScratch& s, int child) {
  return child < level.extra ? quotient(child, level.inverse) : s.path_node[child - level.extra];
}

// By which the children that stay are appended: the higher score first.
template <class G>
DSPARK_HOST_DEVICE uint32_t child_order(const Level&, float score, int) {
  return ~G::float_bits(score);
}

// Digit `place` of a score, of three; higher scores have lower digits.
template <class G>
DSPARK_FORCE_INLINE int score_digit(float score, int place) {
  return kBins - 1 - ((G::float_bits(score) >> (kDigitBits * (2 - place))) & (kBins - 1));
}

// A score that at least `nodes` nodes and children reach, as far as their first digits tell;
// children first .. end - 1 are new since the last call. The counts are kept in s.select.
template <class G>
DSPARK_HOST_DEVICE float raise_bar(G& g, int nodes, const float* scores, int first, int end,
                                   float bar, TreeScratch& s) {
  for (int i = first + g.lane() * G::kWidth; i < end; i += g.size() * G::kWidth) {
    uint32_t bits = G::bits(G::load_own(scores + i) > G::splat(bar));
    for (int k = i; bits != 0; ++k, bits >>= 1) {
      if (bits & 1) g.add(&s.select.histogram[score_digit<G>(scores[k], 0)], 1);
    }
  }
  g.sync();
  int bin = 0;
  for (int above = 0; bin < kBins; ++bin) {
    above += s.select.histogram[bin];
    if (above >= nodes) break;
  }
  g.sync();
  return bin < kBins ? G::bits_float((kBins - 1 - bin) << (2 * kDigitBits)) : 0.0f;
}

// Scores the children of the last level's nodes, best first and some at a time, for as long as they
// can be among the N best; returns how many nodes were expanded.
template <class G, typename T>
DSPARK_HOST_DEVICE int expand_level(G& g, const GlmShape& shape, const GlmInputs<T>& in, int depth,
                                    int start, int kept, const GlmWorkspace& work, TreeScratch& s) {
  const int count = kept - start, pitch = padded(shape.candidates);
  constexpr bool kInParts = G::kExpand < kMaxNodes;
  if constexpr (kInParts) {
    if (count > G::kExpand) {
      clear(g, s.select);
      g.sync();
      for (int i = g.lane(); i < kept; i += g.size()) {
        g.add(&s.select.histogram[score_digit<G>(s.score[i], 0)], 1);
      }
      g.sync();
    }
  }
  int expanded = 0;
  for (float bar = 0; expanded < count && s.score[start + expanded] >= bar;) {
    int some = count - expanded < G::kExpand ? count - expanded : G::kExpand;
    while (s.score[start + expanded + some - 1] < bar) --some;
    score_children(g, shape, in, depth, s.token + start, s.source + start, s.row + start,
                   s.score + start, expanded, some, work);
    const int first = expanded * pitch;
    expanded += some;
    if constexpr (kInParts) {
      if (expanded < count) {
        bar = raise_bar(g, shape.nodes, work.scores, first, expanded * pitch, bar, s);
      }
    }
  }
  return expanded;
}

// Path tokens, shape.path_length apart at `paths`, compete with the candidates: an equal child gets
// the larger score, a new one its own.
template <class G>
DSPARK_HOST_DEVICE void add_path_children(G& g, const GlmShape& shape, const Level& level,
                                          const int64_t* paths, const float* path_scores,
                                          float* scores, TreeScratch& s) {
  for (int p = g.lane(); p < shape.paths; p += g.size()) {
    const int f = s.path_node[p];
    const int64_t token = paths[p * shape.path_length];
    const float own = path_scores[p * shape.path_length];
    const bool alive = f >= 0 && f < level.expanded && token >= 0 && token < shape.vocab;
    const float above = alive ? s.score[level.start + f] : 0;
    s.path_child[p] = alive ? level.extra + p : -1;
    s.path_token[p] = alive ? token : -1;
    s.path_score[p] = own < above ? own : own == own ? above : 0;
    scores[level.extra + p] = 0;
  }
  g.sync();
  auto team = g.team();
  for (int p = team.index(); p < shape.paths; p += team.count()) {
    const int64_t token = s.path_token[p];
    for (int c = team.lane(); token >= 0 && c < shape.candidates; c += team.size()) {
      // the ids of a level are distinct: only one lane writes for a path
      if (level.ids[c] == token) s.path_child[p] = s.path_node[p] * level.pitch + c;
    }
  }
  g.sync();
  // the first of the paths with the same next token stands for it, with the highest of their scores
  for (int base = 0; base < shape.paths; base += g.size()) {
    const int p = base + g.lane();
    int child = p < shape.paths ? s.path_child[p] : -1;
    if (child >= 0) {
      int first = p;
      float best = 0;
      for (int q = 0; q < shape.paths; ++q) {
        if (s.path_child[q] < 0 || s.path_node[q] != s.path_node[p]) continue;
        if (s.path_token[q] != s.path_token[p]) continue;
        if (q < first) first = q;
        if (s.path_score[q] > best) best = s.path_score[q];
      }
      if (first == p && best > scores[child]) scores[child] = best;
      if (child == level.extra + p) child = level.extra + first;
    }
    g.sync();
    if (child >= 0) s.path_child[p] = child;
  }
  g.sync();
}

}  // namespace dspark
