// The N best nodes of a tree of candidates and paths: expansion level by level, for `glm_tree`.
//
// Nodes kept so far are ordered by (depth, score desc, token, parent's order). A level adds the
// children of the last level; then only the N best of all stay, by (score desc, depth, token,
// parent's order), in which order they are written at the end, as far as min_score allows. A
// dropped node cannot return, nor can its descendants, which never score higher.

#pragma once

#include "common/level.h"

namespace dspark {

struct GlmOutputs {  // of one request
  int64_t* tokens;   // [N]
  int32_t *parents, *depths;
  int64_t* ancestors;  // [N, ceil(N / 64)]
  float* scores;
  int32_t* num_nodes;
};

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
  int found = kept;
  const int end = level.extra + shape.paths;
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
  g.sync();
  return found;
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
  g.sync();
  sort(
      g, s.order, count,
      [&](uint64_t a, uint64_t b) {
        if (a >> 32 != b >> 32) return a < b;
        const int one = static_cast<int>(a & INT32_MAX), other = static_cast<int>(b & INT32_MAX);
        const int64_t token = child_token<G>(level, one), right = child_token<G>(level, other);
        if (token != right) return token < right;
        return child_parent<G>(level, s, one) < child_parent<G>(level, s, other);
      },
      [&](int place, uint64_t value) { s.child[place] = static_cast<int>(value & INT32_MAX); });
  for (int i = g.lane(); i < count; i += g.size()) {
    const int child = s.child[i], node = stay + i, f = child_parent<G>(level, s, child);
    s.token[node] = child_token<G>(level, child);
    s.score[node] = scores[child];
    s.depth[node] = level.depth + 1;
    s.parent[node] = s.moved[level.start + f];
    s.row[node] = f;
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
        s.child[place] = node;
      });
  if (shape.min_score == 0) return kept;
  int stay = 0;
  for (float sum = 0; stay < kept; ++stay) {
    const float score = s.score[s.child[stay]];
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
  for (int item = g.lane(); item < shape.nodes * words; item += g.size()) {
    const int node = item / words, word = item % words;
    uint64_t bits = 0;
    for (int i = node; i >= 0; i = s.moved[i] < stay ? s.parent[i] : -1) {
      const int to = s.moved[i];
      if (to / 64 == word) bits |= uint64_t{1} << (to % 64);
    }
    out.ancestors[s.moved[node] * words + word] = static_cast<int64_t>(bits);
  }
  if (g.lane() == 0) *out.num_nodes = stay;
}

template <class G, typename T>
DSPARK_HOST_DEVICE void build_tree(G& g, const GlmShape& shape, const GlmInputs<T>& in,
                                   const GlmWorkspace& work, TreeScratch& s,
                                   const GlmOutputs& out) {
  const int rank = padded(shape.rank), pitch = padded(shape.candidates);
  if (!shape.matrix_unit) {
    // rows R .. 2R - 1 of mix become the columns from Rp on
    transpose(g, rank + shape.rank, shape.rank, 2 * rank, work.mix, [&](int j) {
      const int row = j < shape.rank ? j : j < rank ? -1 : j - rank + shape.rank;
      return row < 0 ? nullptr : in.mix + row * shape.rank;
    });
  }
  prefetch_rows(g, shape, in);
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
