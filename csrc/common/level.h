// One level of the tree under construction: its nodes, which of them are expanded, and the scores
// of their children, for `glm_tree`.

#pragma once

#include "common/glm.h"
#include "common/select.h"

namespace dspark {

constexpr int kFew = 64;                             // keys listed beyond the N best
constexpr int kTokens = kMaxCandidates + kMaxPaths;  // of a head and of the paths
constexpr int kRoom = kMaxNodes + kFew;              // for nodes

struct TreeScratch {
  int64_t token[kRoom];
  // Of nodes, or of children that stay; behind kRoom of listed children, at the end of the N best.
  uint64_t key[2 * kRoom];
  alignas(16) float score[kRoom];
  int16_t parent[kRoom];
  int16_t moved[kRoom];  // at the end: the nodes' places, best first; before it, tails' children
  uint8_t depth[kRoom];
  uint8_t row[kRoom];     // of the last level's nodes: the parent's place in the level above
  uint8_t source[kRoom];  // of nodes: the candidate that the token is, or a path behind these
  int taken[kRoom / 32];  // which nodes stay, a bit each
  int listed, ranked;     // how many children, and at the end nodes, that may be among the N best
  ScoreCounts counts;
  SelectScratch select;
  int path_node[kMaxPaths];   // each path's place in the last level, or -1
  int path_first[kMaxPaths];  // see match_paths
  float path_best[kMaxPaths];
  uint32_t path_child[kMaxPaths];    // what its next token is among the children: rest of a key
  int apart[kMaxPaths][kMaxPaths];   // see compare_paths
  uint8_t rank[kMaxHeads][kTokens];  // of the tokens of a head, then of the paths: how many of
                                     // these are lower
  uint8_t path_source[kMaxHeads][kMaxPaths];  // the candidate that a path's token is, else the
                                              // path behind these
};

// Nodes and children are compared by keys: the score, highest first, then 30 bits that tell them
// apart in the order in which equal ones come. Of nodes, which are in this order already, their
// number.
constexpr int kRestBits = 30;
constexpr uint32_t kRest = (1u << kRestBits) - 1, kChild = 1u << (kRestBits - 1);
static_assert(2 * kRestBits == kDigits * kDigitBits);

template <class G>
DSPARK_FORCE_INLINE uint64_t key_of(float score, uint32_t rest) {  // 0 <= score <= 1
  return uint64_t{kRest - G::float_bits(score)} << kRestBits | rest;
}
template <class G>
DSPARK_FORCE_INLINE int score_digit(float score) {  // the first digit of its key
  return digit_of(key_of<G>(score, 0), 0);
}
template <class G>
DSPARK_FORCE_INLINE float score_of(uint64_t key) {
  return G::bits_float(kRest - static_cast<uint32_t>(key >> kRestBits));
}

// The children of one level: child f · pitch + c is candidate c under node f of the last level,
// child extra + p the next token of path p where no candidate stands for it.
struct Level {
  int depth;            // of the last level, and the head of its children
  int start, expanded;  // nodes of the last level; those after the first `expanded` stay childless
  int candidates, pitch, extra;
  uint32_t inverse;      // of pitch
  const int64_t* ids;    // [C] of the head
  const int64_t* paths;  // the paths' next tokens, `stride` apart
  int stride;
};

// (token, parent's order), then where the token comes from.
DSPARK_FORCE_INLINE uint32_t child_bits(const TreeScratch& s, const Level& level, int f,
                                        int source) {
  return kChild | static_cast<uint32_t>(s.rank[level.depth][source] << 22 | f << 14 | source);
}
DSPARK_FORCE_INLINE int bits_parent(uint32_t rest) { return rest >> 14 & (kMaxNodes - 1); }
DSPARK_FORCE_INLINE int bits_source(uint32_t rest) { return rest & 127; }
static_assert(kTokens <= 128 && 22 + 7 <= kRestBits - 1);

template <class G>
DSPARK_HOST_DEVICE uint32_t child_rest(const Level& level, const TreeScratch& s, int child) {
  if (child >= level.extra) return s.path_child[child - level.extra];
  const int f = quotient(child, level.inverse);
  return child_bits(s, level, f, child - f * level.pitch);
}

// s.rank and s.path_source of all levels. inverse: of candidates and paths together. Without a sync
// at the end.
template <class G, typename T>
DSPARK_HOST_DEVICE void rank_tokens(G& g, const GlmShape& shape, const GlmInputs<T>& in,
                                    uint32_t inverse, TreeScratch& s) {
  const int of_level = shape.candidates + shape.paths;
  // not the first members, which multiply next
  for (int item = g.lane() ^ g.size() / 2; item < shape.heads * of_level; item += g.size()) {
    const int level = quotient(item, inverse);
    const int own = item - level * of_level, p = own - shape.candidates;
    const bool has_paths = level < shape.path_length;
    if (p >= 0 && !has_paths) continue;
    const int64_t* ids = in.ids + level * shape.candidates;
    const int64_t* next = has_paths ? in.paths + level : nullptr;
    const int64_t token = p < 0 ? ids[own] : next[p * shape.path_length];
    int rank = 0, candidate = own;
    DSPARK_SIDE_BY_SIDE(4)
    for (int c = shape.candidates - 1; c >= 0; --c) {  // the first of equal ones
      rank += ids[c] < token;
      if (ids[c] == token) candidate = c;
    }
    for (int q = 0; has_paths && q < shape.paths; ++q) {
      rank += next[q * shape.path_length] < token;
    }
    s.rank[level][own] = static_cast<uint8_t>(rank);
    if (p >= 0) s.path_source[level][p] = static_cast<uint8_t>(candidate);
  }
}

// A score that at least `nodes` nodes and children reach, as far as their first digits tell;
// children first .. end - 1 are new since the last call. The counts are kept in s.select.
template <class G>
DSPARK_HOST_DEVICE float raise_bar(G& g, int nodes, const float* scores, int first, int end,
                                   float bar, TreeScratch& s) {
  for (int i = first + g.lane() * G::kWidth; i < end; i += g.size() * G::kWidth) {
    uint32_t bits = G::bits(G::load_own(scores + i) > G::splat(bar));
    for (int k = i; bits != 0; ++k, bits >>= 1) {
      if (bits & 1) g.add(&s.select.histogram[score_digit<G>(scores[k])], 1);
    }
  }
  g.sync();
  int bin = 0;
  for (int above = 0; bin < kBins; ++bin) {
    above += s.select.histogram[bin];
    if (above >= nodes) break;
  }
  g.sync();
  return bin < kBins ? score_of<G>((uint64_t{1} + bin) * (uint64_t{1} << digit_shift(0)) - 1) : 0;
}

// Scores the children of the last level's nodes, best first and some at a time, for as long as they
// can be among the N best; returns how many nodes were expanded. Calls meanwhile() once.
template <class G, typename T, class Meanwhile>
DSPARK_HOST_DEVICE int expand_level(G& g, const GlmShape& shape, const GlmInputs<T>& in, int depth,
                                    int start, int kept, const GlmWorkspace& work, TreeScratch& s,
                                    const Meanwhile& meanwhile) {
  const int count = kept - start, pitch = padded(shape.candidates);
  if constexpr (!kCountScores<G>) {
    if (count > G::kExpand) {
      clear(g, s.select);
      g.sync();
      for (int i = g.lane(); i < kept; i += g.size()) {
        g.add(&s.select.histogram[score_digit<G>(s.score[i])], 1);
      }
      g.sync();
    }
  }
  int expanded = 0;
  for (float bar = 0; expanded < count && s.score[start + expanded] >= bar;) {
    int some = count - expanded < G::kExpand ? count - expanded : G::kExpand;
    while (s.score[start + expanded + some - 1] < bar) --some;
    score_children(g, shape, in, depth, s.token + start, s.source + start, s.row + start,
                   s.score + start, expanded, some, work, s.counts, [&] {
                     if (expanded == 0) meanwhile();
                   });
    const int first = expanded * pitch;
    expanded += some;
    if constexpr (!kCountScores<G>) {
      if (expanded < count) {
        bar = raise_bar(g, shape.nodes, work.scores, first, expanded * pitch, bar, s);
      }
    }
  }
  return expanded;
}

// The first of the paths with the same next token below the same node stands for it, with the
// highest of their scores: into s.path_first, -1 for paths that have ended, and s.path_best.
template <class G>
DSPARK_HOST_DEVICE void match_paths(G& g, const GlmShape& shape, int start, const int64_t* tokens,
                                    const float* path_scores, TreeScratch& s) {
  auto team = g.team();
  // the last members have the least to do but at the first level
  for (int p = team.count() - 1 - team.index(); p < shape.paths; p += team.count()) {
    const int f = s.path_node[p];
    const int64_t token = tokens[p * shape.path_length];
    const bool alive = f >= 0 && token >= 0 && token < shape.vocab;
    const float above = alive ? s.score[start + f] : 0;
    int first = p;
    float best = 0;
    for (int q = team.lane(); alive && q < shape.paths; q += team.size()) {
      if (s.path_node[q] != f || tokens[q * shape.path_length] != token) continue;
      const float own = path_scores[q * shape.path_length];
      const float score = own < above ? own : own == own ? above : 0;
      if (q < first) first = q;
      if (score > best) best = score;
    }
    first = team.min(first), best = team.max(best);
    if (team.lane() != 0) continue;
    s.path_first[p] = alive ? first : -1;
    s.path_best[p] = best;
  }
}

// The paths' next tokens compete with the candidates: an equal child gets the larger score, a new
// one its own.
template <class G>
DSPARK_HOST_DEVICE void add_path_children(G& g, const GlmShape& shape, const Level& level,
                                          float* scores, TreeScratch& s) {
  const ScoreCounts::Range range = s.counts.range;
  for (int p = g.lane(); p < shape.paths; p += g.size()) {
    const int f = s.path_node[p], first = s.path_first[p];
    const bool alive = first >= 0 && f < level.expanded, stands = alive && first == p;
    int source = s.path_source[level.depth][p];
    const bool candidate = source < level.candidates;
    if (!candidate) source = level.candidates + first;
    float own = stands ? s.path_best[p] : 0;
    if (stands && candidate) {
      float* const score = scores + f * level.pitch + source;
      if (own > *score) {
        count_score(g, range, *score, -1, s.counts);
        count_score(g, range, own, 1, s.counts);
        *score = own;
      }
      own = 0;
    }
    scores[level.extra + p] = own;
    count_score(g, range, own, 1, s.counts);
    s.path_child[p] = alive ? child_bits(s, level, f, source) : 0;
    s.path_node[p] = -1;  // until its child stays
  }
  g.sync();
}

}  // namespace dspark
