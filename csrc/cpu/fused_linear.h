// What the launcher and the kernels of fused_linear share.

#pragma once

#include "common/types.h"
#include "cpu/isa.h"

namespace dspark {

constexpr int kMaxWeights = 4;
constexpr int kNormRows = 16;  // of the output that one task norms: fewer are not worth a thread

struct FusedLinear {
  DType dtype;
  const void *x, *residual, *norm_weight;  // [rows, depth], [rows, width] or null, [width] or null
  const void *weight[kMaxWeights], *bias[kMaxWeights];  // [columns, depth], [columns] or null
  int64_t columns[kMaxWeights], weight_stride[kMaxWeights];
  int64_t x_stride, residual_stride, rows, depth, width;
  int weights;
  bool gated;  // two weights of the same shape, and one output
  float eps;
  int64_t task_columns;
  int64_t group_tasks;  // of every group of rows
  float* packed;        // the rows as the kernel reads them
  void *out, *normed;   // [rows, width]

  // Weights whose columns lie side by side in the output.
  DSPARK_FORCE_INLINE int parts() const { return gated ? 1 : weights; }
  DSPARK_FORCE_INLINE int64_t tasks(int part) const {
    return (columns[part] + task_columns - 1) / task_columns;
  }
};

// The rows are taken in groups that stay in a core's cache while all weights pass by.
struct FusedLinearSizes {
  int64_t packed_floats, tile, groups;
};

DSPARK_CPU_KERNEL(FusedLinearSizes fused_linear_sizes(const FusedLinear& p))
DSPARK_CPU_KERNEL(void fused_linear_pack(const FusedLinear& p, int64_t group))
DSPARK_CPU_KERNEL(void fused_linear_task(const FusedLinear& p, int64_t task))
DSPARK_CPU_KERNEL(void fused_linear_norm(const FusedLinear& p, int64_t task))

}  // namespace dspark
