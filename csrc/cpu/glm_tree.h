// What the launcher and the kernel of glm_tree share.

#pragma once

#include "common/tree.h"
#include "cpu/isa.h"
#include "cpu/types.h"

namespace dspark {

struct GlmTree {  // the inputs of all requests; null where absent
  DType dtype;
  GlmShape shape;
  const int64_t *ids, *root, *paths;
  const float *keys, *logsumexp, *gate, *depth_scale, *calibration, *temperature, *path_scores;
  const void *table_in, *table_out, *mix;

  int64_t *tokens, *ancestors;
  int32_t *parents, *depths, *num_nodes;
  float* scores;
};

DSPARK_CPU_KERNEL(void glm_tree_request(const GlmTree& p, int64_t request, char* workspace))

}  // namespace dspark
