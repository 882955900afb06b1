// All requests of glm_tree, and the tree of one.

#pragma once

#include "common/tree.h"
#include "common/types.h"

namespace dspark {

struct GlmTree {  // the inputs of all requests; null where absent
  DType dtype;
  GlmShape shape;
  GlmLayout layout;  // of the workspaces
  const int64_t *ids, *root, *paths;
  const float *keys, *logsumexp, *gate, *depth_scale, *calibration, *temperature, *path_scores;
  const void *table_in, *table_out, *mix;

  int64_t *tokens, *ancestors;
  int32_t *parents, *depths, *num_nodes;
  float* scores;
};

template <class G, typename T>
DSPARK_HOST_DEVICE void glm_tree_request(G& g, const GlmTree& p, int64_t b, char* workspace,
                                         TreeScratch& scratch) {
  const GlmShape& s = p.shape;
  const int64_t heads = b * s.heads, candidates = heads * s.candidates;
  const int64_t paths = b * s.paths * s.path_length, nodes = b * s.nodes;
  const float temperature = p.temperature == nullptr ? 1.0f : p.temperature[b];
  const GlmInputs<T> in{
      p.ids + candidates,
      p.keys + candidates,
      p.logsumexp + heads,
      p.gate + heads * 2 * s.rank,
      p.root + b,
      static_cast<const T*>(p.table_in),
      static_cast<const T*>(p.table_out),
      static_cast<const T*>(p.mix),
      p.depth_scale,
      p.calibration,
      temperature > 0 ? temperature : 1.0f,
      s.paths > 0 ? p.paths + paths : nullptr,
      s.paths > 0 ? p.path_scores + paths : nullptr,
  };
  const GlmOutputs out{
      p.tokens + nodes, p.parents + nodes,
      p.depths + nodes, p.ancestors + nodes * ((s.nodes + 63) / 64),
      p.scores + nodes, p.num_nodes + b,
  };
  build_tree(g, s, in, GlmWorkspace(p.layout, workspace), scratch, out);
}

}  // namespace dspark
