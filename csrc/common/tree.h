// The N best nodes of a tree of candidates and paths: expansion level by level, for `glm_tree`.
//
// Nodes kept so far are ordered as the result is, by (depth, score desc, token, parent's order). A
// level adds the children of the last level; then only the N best of all stay, by (score desc,
// depth, token, parent's order). A dropped node cannot return, nor can its descendants, which never
// score higher.

#pragma once

#include "common/glm.h"
#include "common/select.h"

namespace dspark {

struct GlmOutputs {  // of one request
  int64_t* tokens;   // [N]
  int32_t *parents, *depths;
  int64_t* ancestors;  // [N, ceil(N / 64)]
  float* scores;
  int32_t* num_nodes;
};

struct TreeScratch {
  int64_t token[kMaxNodes];
  float score[kMaxNodes];
  int parent[kMaxNodes], depth[kMaxNodes];
  int row[kMaxNodes];    // of the last level's nodes: the parent's place in the level above
  int moved[kMaxNodes];  // where a node goes when others are dropped; -1 if it is dropped
  int child[kMaxNodes];  // the children that stay
  uint64_t order[kMaxNodes];
  SelectScratch select;
  int path_node[kMaxPaths];   // each path's place in the last level, or -1
  int path_child[kMaxPaths];  // the child that stands for each path's next token, or -1
  float bar;
  int items, children;
};

// The children of one level: child f · pitch + c is candidate c under node f of the last level,
// child extra + p the next token of path p where no candidate stands for it.
struct Level {
  int depth;            // of the last level, and the head of its children
  int start, expanded;  // nodes of the last level; those after the first `expanded` stay childless
  int pitch, extra;
  const int64_t *ids, *paths;  // [C] of the head; [P] next tokens, path_stride apart
  int path_stride;
};

template <class G>
DSPARK_HOST_DEVICE int64_t child_token(const Level& level, int child) {
  return child < level.extra ? level.ids[child % level.pitch]
                             : level.paths[(child - level.extra) * level.path_stride];
}

template <class G>
DSPARK_HOST_DEVICE int child_parent(const Level& level, const TreeScratch& s, int child) {
  return child < level.extra ? child / level.pitch : s.path_node[child - level.extra];
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
    uint32_t bits = G::bits(G::load(scores + i) > G::splat(bar));
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
  prepare_level(g, shape, in, depth, work);
  if (count > G::kExpand) {
    for (int i = g.lane(); i < kBins; i += g.size()) s.select.histogram[i] = 0;
    g.sync();
    for (int i = g.lane(); i < kept; i += g.size()) {
      g.add(&s.select.histogram[score_digit<G>(s.score[i], 0)], 1);
    }
    g.sync();
  }
  int expanded = 0;
  for (float bar = 0; expanded < count && s.score[start + expanded] >= bar;) {
    int some = 1;
    while (some < G::kExpand && expanded + some < count &&
           s.score[start + expanded + some] >= bar) {
      ++some;
    }
    score_children(g, shape, in, depth, s.token + start, s.row + start, s.score + start, expanded,
                   some, work);
    const int first = expanded * pitch;
    expanded += some;
    if (expanded < count) {
      bar = raise_bar(g, shape.nodes, work.scores, first, expanded * pitch, bar, s);
    }
  }
  return expanded;
}

// Path tokens compete with the candidates: an equal child gets the larger score, a new one its own.
template <class G>
DSPARK_HOST_DEVICE void add_path_children(G& g, const GlmShape& shape, const Level& level,
                                          const float* path_scores, int candidates, float* scores,
                                          TreeScratch& s) {
  for (int p = g.lane(); p < shape.paths; p += g.size()) {
    const int f = s.path_node[p];
    const int64_t token = level.paths[p * level.path_stride];
    const bool alive = f >= 0 && f < level.expanded && token >= 0 && token < shape.vocab;
    int child = alive ? level.extra + p : -1;
    for (int c = 0; child >= level.extra && c < candidates; ++c) {
      if (level.ids[c] == token) child = f * level.pitch + c;
    }
    s.path_child[p] = child;
    scores[level.extra + p] = 0;
  }
  g.sync();
  if (g.lane() == 0) {
    for (int p = 0; p < shape.paths; ++p) {
      int child = s.path_child[p];
      if (child < 0) continue;
      const int f = s.path_node[p];
      for (int other = 0; child == level.extra + p && other < p; ++other) {
        if (s.path_child[other] == level.extra + other && s.path_node[other] == f &&
            level.paths[other * level.path_stride] == level.paths[p * level.path_stride]) {
          child = level.extra + other;
        }
      }
      s.path_child[p] = child;
      const float own = path_scores[p * level.path_stride], above = s.score[level.start + f];
      const float score = own < above ? own : own == own ? above : 0;
      if (score > scores[child]) scores[child] = score;
    }
  }
  g.sync();
}

// Lists the nodes kept (as ~index) and the children that may be among the N best; returns how many.
template <class G>
DSPARK_HOST_DEVICE int list_items(G& g, const GlmShape& shape, const Level& level, int kept,
                                  const float* scores, int* items, TreeScratch& s) {
  using V = typename G::Vector;
  // with N nodes kept, a child must be above the lowest of them: on a tie the lower depth wins
  float bar = kept < shape.nodes ? 0.0f : 1.0f;
  for (int i = g.lane(); i < kept; i += g.size()) {
    items[i] = ~i;
    if (kept == shape.nodes && s.score[i] < bar) bar = s.score[i];
  }
  bar = g.min(bar);
  if (g.lane() == 0) s.items = kept;
  g.sync();
  const int end = level.extra + shape.paths;
  for (int first = g.lane() * G::kWidth; first < end; first += g.size() * G::kWidth) {
    const int left = end - first;
    const V score =
        left < G::kWidth ? G::load_first(scores + first, left) : G::load(scores + first);
    uint32_t bits = G::bits(score > G::splat(bar)) & ~G::bits(score < G::splat(shape.min_score));
    for (int i = 0; bits != 0; ++i, bits >>= 1) {
      if (bits & 1) items[g.add(&s.items, 1)] = first + i;
    }
  }
  g.sync();
  return s.items;
}

// Digit `place` of an item's key (score desc, depth, token, parent's order): 3, 1, 7 and 1 digits.
constexpr int kKeyDigits = 12;
template <class G>
DSPARK_HOST_DEVICE int key_digit(const Level& level, const TreeScratch& s, const float* scores,
                                 int item, int place) {
  const bool node = item < 0;
  if (place < 3) return score_digit<G>(node ? s.score[~item] : scores[item], place);
  if (place == 3) return node ? s.depth[~item] : level.depth + 1;
  if (place < 11) {
    const int64_t token = node ? s.token[~item] : child_token<G>(level, item);
    return static_cast<int>(token >> (kDigitBits * (10 - place))) & (kBins - 1);
  }
  return node ? s.parent[~item] + 1 : child_parent<G>(level, s, item);
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

// Appends the children that stay, sorted, as the new last level.
template <class G>
DSPARK_HOST_DEVICE void append_children(G& g, const GlmShape& shape, const Level& level, int stay,
                                        const float* scores, TreeScratch& s) {
  const int count = s.children;
  for (int i = g.lane(); i < count; i += g.size()) {
    const uint64_t descending = ~G::float_bits(scores[s.child[i]]);
    s.order[i] = descending << 32 | static_cast<uint32_t>(s.child[i]);
  }
  bitonic_sort(g, s.order, count, UINT64_MAX, [&](uint64_t a, uint64_t b) {
    if (a >> 32 != b >> 32 || a == UINT64_MAX || b == UINT64_MAX) return a < b;
    const int one = static_cast<int>(a & INT32_MAX), other = static_cast<int>(b & INT32_MAX);
    const int64_t token = child_token<G>(level, one), other_token = child_token<G>(level, other);
    if (token != other_token) return token < other_token;
    return child_parent<G>(level, s, one) < child_parent<G>(level, s, other);
  });
  for (int i = g.lane(); i < count; i += g.size()) {
    const int child = static_cast<int>(s.order[i] & INT32_MAX), node = stay + i;
    const int f = child_parent<G>(level, s, child);
    s.token[node] = child_token<G>(level, child);
    s.score[node] = scores[child];
    s.depth[node] = level.depth + 1;
    s.parent[node] = s.moved[level.start + f];
    s.row[node] = f;
    s.child[i] = child;
  }
  g.sync();
  for (int p = g.lane(); p < shape.paths; p += g.size()) {
    int place = -1;
    for (int i = 0; i < count && s.path_child[p] >= 0; ++i) {
      if (s.child[i] == s.path_child[p]) place = i;
    }
    s.path_node[p] = place;
  }
  g.sync();
}

template <class G>
DSPARK_HOST_DEVICE void write_tree(G& g, const GlmShape& shape, int kept, const TreeScratch& s,
                                   const GlmOutputs& out) {
  const int words = (shape.nodes + 63) / 64;
  for (int i = g.lane(); i < shape.nodes; i += g.size()) {
    const bool used = i < kept;
    out.tokens[i] = used ? s.token[i] : 0;
    out.parents[i] = used ? s.parent[i] : -1;
    out.depths[i] = used ? s.depth[i] : 0;
    out.scores[i] = used ? s.score[i] : 0.0f;
  }
  for (int item = g.lane(); item < shape.nodes * words; item += g.size()) {
    const int node = item / words, word = item % words;
    uint64_t bits = 0;
    for (int i = node; i >= 0; i = i < kept ? s.parent[i] : -1) {
      if (i / 64 == word) bits |= uint64_t{1} << (i % 64);
    }
    out.ancestors[item] = static_cast<int64_t>(bits);
  }
  if (g.lane() == 0) *out.num_nodes = kept;
}

template <class G, typename T>
DSPARK_HOST_DEVICE void build_tree(G& g, const GlmShape& shape, const GlmInputs<T>& in,
                                   const GlmWorkspace& work, TreeScratch& s,
                                   const GlmOutputs& out) {
  const int rank = padded(shape.rank), pitch = padded(shape.candidates);
  // rows R .. 2R - 1 of mix become the columns from Rp on
  transpose(g, rank + shape.rank, shape.rank, 2 * rank, work.mix, [&](int j) {
    const int row = j < shape.rank ? j : j < rank ? -1 : j - rank + shape.rank;
    return row < 0 ? nullptr : in.mix + row * shape.rank;
  });
  if (g.lane() == 0) {
    s.token[0] = in.root;
    s.score[0] = 1;
    s.parent[0] = -1;
    s.depth[0] = s.row[0] = 0;
  }
  for (int p = g.lane(); p < shape.paths; p += g.size()) s.path_node[p] = 0;
  g.sync();

  const int depth_limit = shape.heads > shape.path_length ? shape.heads : shape.path_length;
  int start = 0, kept = 1;
  for (int depth = 0; depth < depth_limit && start < kept; ++depth) {
    const bool has_head = depth < shape.heads, has_paths = depth < shape.path_length;
    const int expanded =
        has_head ? expand_level(g, shape, in, depth, start, kept, work, s) : kept - start;
    const Level level{depth,
                      start,
                      expanded,
                      pitch,
                      has_head ? expanded * pitch : 0,
                      in.ids + depth * shape.candidates,
                      has_paths ? in.paths + depth : nullptr,
                      shape.path_length};
    GlmShape here = shape;  // without the paths where they have ended
    if (!has_paths) here.paths = 0;
    if (has_paths) {
      add_path_children(g, here, level, in.path_scores + depth, has_head ? here.candidates : 0,
                        work.scores, s);
    }
    const int items = list_items(g, here, level, kept, work.scores, work.items, s);
    for (int i = g.lane(); i < kept; i += g.size()) s.moved[i] = -1;
    if (g.lane() == 0) s.children = 0;
    g.sync();
    select_smallest(
        g, work.items, work.spare, items, shape.nodes, kKeyDigits, s.select,
        [&](int item, int place) { return key_digit<G>(level, s, work.scores, item, place); },
        [&](int item) {
          if (item < 0) {
            s.moved[~item] = 0;
          } else {
            s.child[g.add(&s.children, 1)] = item;
          }
        });
    start = drop_nodes(g, kept, s);
    kept = start + s.children;
    append_children(g, here, level, start, work.scores, s);
  }
  write_tree(g, shape, kept, s, out);
}

}  // namespace dspark
