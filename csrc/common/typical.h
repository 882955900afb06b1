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
};

struct TypicalScratch {
  int queue[kMaxNodes], depth[kMaxNodes];
  int count;
};

// The path to the deepest accepted node, of several the lowest: path[0 .. count - 1]; returns
// count. Only the rows of accepted nodes which have children are read.
template <class G, typename T>
DSPARK_HOST_DEVICE int typical_walk(G& g, const TreeView& tree, const LogitsRow<T>& root_row,
                                    int64_t row_stride, const TypicalOptions& options,
                                    TypicalScratch& scratch, int32_t* path) {
  if (g.lane() == 0) {
    scratch.queue[0] = scratch.depth[0] = 0;
    scratch.count = 1;
  }
  g.sync();
  for (int next = 0; next < scratch.count; ++next) {
    const int node = scratch.queue[next], depth = scratch.depth[node];
    int children = 0;
    for (int i = g.lane(); i < tree.used; i += g.size()) children |= tree.parents[i] == node;
    if (!g.max(children) || depth == options.max_depth) continue;
    LogitsRow<T> row = root_row;
    row.logits += node * row_stride;
    const RowStats stats = row_stats(g, row);
    if (stats.valid()) {
      const float certainty = expf(stats.weighted / stats.sum) / stats.sum;  // exp(-entropy)
      const float threshold = fminf(options.epsilon, options.delta * certainty);
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

template <class G, typename T>
DSPARK_HOST_DEVICE void typical_accept_request(G& g, const TypicalAccept& p, int64_t b,
                                               TypicalScratch& scratch, int32_t* path) {
  const TreeView tree = p.walks.tree(b);
  const float temperature = p.temperature == nullptr ? 1.0f : p.temperature[b];
  const LogitsRow<T> root{static_cast<const T*>(p.logits) + b * p.batch_stride, p.vocab,
                          temperature > 0 ? temperature : 1.0f};
  const int count = typical_walk(g, tree, root, p.row_stride, p.options, scratch, path);
  write_walk(g, tree, p.walks.target + b * tree.nodes, p.walks.max_depth, path, count,
             p.walks.outputs(b));
}

}  // namespace dspark
