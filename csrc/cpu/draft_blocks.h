// What the launcher and the kernels of draft_blocks share.

#pragma once

#include "common/types.h"
#include "cpu/isa.h"

namespace dspark {

struct DraftBlocks {
  DType dtype;
  const void *hidden, *features;  // [rows, dim], [rows, depth]
  const void *weight, *bias,
      *residual_scale;  // [heads * dim, depth], [heads * dim], the same or null
  int64_t rows, heads, dim, depth, hidden_stride, features_stride;
  int64_t task_rows;  // rows of the weight in one task
  float* packed;      // the features as the kernel reads them
  void* out;          // [rows, heads * dim]
};

struct DraftBlocksSizes {
  int64_t packed_floats, tile;
};

DSPARK_CPU_KERNEL(DraftBlocksSizes draft_blocks_sizes(const DraftBlocks& p))
DSPARK_CPU_KERNEL(void draft_blocks_pack(const DraftBlocks& p))
DSPARK_CPU_KERNEL(void draft_blocks_task(const DraftBlocks& p, int64_t task))

}  // namespace dspark
