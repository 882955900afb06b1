// Medusa's typical acceptance, for `typical_accept`.

#pragma once

#include "common/softmax.h"
#include "common/types.h"
#include "common/walk.h"

namespace dspark {

struct TypicalOptions {
  float epsilon, delta;
  int max_depth;
};

struct TypicalAccept {  // all requests
  WalkBatch walks;
  TypicalOptions options;
  DType dtype;
  const void* logits;  // [B, N, V]
  int64_t batch_stride, row_stride, vocab;
  const float* temperature;  // [B] or null

  template <typename T>
  DSPARK_FORCE_INLINE LogitsRow<T> row(int64_t b, int node) const {
    const float given = temperature == nullptr ? 1.0f : temperature[b];
    return {static_cast<const T*>(logits) + b * batch_stride + node * row_stride, vocab,
            given > 0 ? given : 1.0f};
  }
};

struct TypicalScratch {
  int queue[kMaxNodes], depth[kMaxNodes];
  int count;
};

template <class G>
DSPARK_HOST_DEVICE bool has_children(G& g, const TreeView& tree, int node) {
  int children = 0;
  for (int i = g.lane(); i < tree.used; i += g.size()) children |= tree.parents[i] == node;
  return g.max(children) != 0;
}

// The path to the deepest accepted node, of several the lowest: path[0 .. count - 1]; returns
// count. stats_of(node) is asked for only of accepted nodes which have children, by all members.
template <class G, typename T, class StatsOf>
DSPARK_HOST_DEVICE int typical_walk(G& g, const TypicalAccept& p, int64_t b, const TreeView& tree,
                                    const StatsOf& stats_of, TypicalScratch& scratch,
                                    int32_t* path) {
  if (g.lane() == 0) {
    scratch.queue[0] = scratch.depth[0] = 0;
    scratch.count = 1;
  }
  g.sync();
  for (int next = 0; next < scratch.count; ++next) {
    const int node = scratch.queue[next], depth = scratch.depth[node];
    if (!has_children(g, tree, node) || depth == p.options.max_depth) continue;
    const LogitsRow<T> row = p.row<T>(b, node);
    const RowStats stats = stats_of(node);
    if (stats.valid()) {
      const float certainty = expf(stats.weighted / stats.sum) / stats.sum;  // exp(-entropy)
      const float threshold = fminf(p.options.epsilon, p.options.delta * certainty);
      for (int i = 1 + g.lane(); i < tree.used; i += g.size()) {
        if (tree.parents[i] != node || tree.tokens[i] < 0 || tree.tokens[i] >= row.vocab) continue;
        if (expf(logit<G>(row, tree.tokens[i]) - stats.top) / stats.sum > threshold) {
          scratch.queue[g.add(&scratch.count, 1)] = i;
          scratch.depth[i] = depth + 1;
        }
      }
    }
    g.sync();
  }

  int best = 0;  // depth · kMaxNodes, plus more for lower indices
  for (int i = g.lane(); i < scratch.count; i += g.size()) {
    const int node = scratch.queue[i];
    const int rank = (scratch.depth[node] + 1) * kMaxNodes - 1 - node;
    if (rank > best) best = rank;
  }
  best = g.max(best);
  const int count = best / kMaxNodes + 1;
  if (g.lane() == 0) {
    int node = kMaxNodes - 1 - best % kMaxNodes;
    for (int i = count - 1; i >= 0; --i, node = tree.parents[node]) path[i] = node;
  }
  g.sync();
  return count;
}

template <class G, typename T, class StatsOf>
DSPARK_HOST_DEVICE void accept_typical(G& g, const TypicalAccept& p, int64_t b,
                                       const StatsOf& stats_of, TypicalScratch& scratch,
                                       int32_t* path) {
  const TreeView tree = p.walks.tree(b);
  const int count = typical_walk<G, T>(g, p, b, tree, stats_of, scratch, path);
  write_walk(g, tree, p.walks.target + b * tree.nodes, p.walks.max_depth, path, count,
             p.walks.outputs(b));
}

// A request by one group, which reads the rows of accepted nodes with children alone.
template <class G, typename T>
DSPARK_HOST_DEVICE void typical_accept_request(G& g, const TypicalAccept& p, int64_t b,
                                               TypicalScratch& scratch, int32_t* path) {
  const auto stats_of = [&](int node) { return row_stats(g, p.row<T>(b, node)); };
  accept_typical<G, T>(g, p, b, stats_of, scratch, path);
}

// The same by many groups, in two phases: the second may start when the first is done.
struct SlicedTypical {
  TypicalAccept typical;
  Slices slices;
  RowStats* stats;  // [B, N, slices], of nodes with children

  DSPARK_FORCE_INLINE RowStats* stats_of(int64_t b, int node) const {
    return stats + (b * typical.walks.nodes + node) * slices.count;
  }
};

// Phase one, by a group for each node and slice.
template <class G, typename T>
DSPARK_HOST_DEVICE void typical_stats(G& g, const SlicedTypical& p, int64_t b, int node,
                                      int slice) {
  const TreeView tree = p.typical.walks.tree(b);
  if (node >= tree.used || !has_children(g, tree, node)) return;
  const RowStats stats = row_stats(g, p.slices.of(p.typical.row<T>(b, node), slice));
  if (g.lane() == 0) p.stats_of(b, node)[slice] = stats;
}

// Phase two, by a group for each request. The statistics of nodes without children are rubbish.
template <class G, typename T>
DSPARK_HOST_DEVICE void typical_finish(G& g, const SlicedTypical& p, int64_t b,
                                       TypicalScratch& scratch, RowStats* stats, int32_t* path) {
  const int used = p.typical.walks.tree(b).used;
  for (int node = g.lane(); node < used; node += g.size()) {
    stats[node] = merge_stats<G>(p.stats_of(b, node), p.slices.count);
  }
  const auto stats_of = [&](int node) { return stats[node]; };
  accept_typical<G, T>(g, p.typical, b, stats_of, scratch, path);
}

}  // namespace dspark
