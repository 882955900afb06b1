// What the launcher and the kernels of linear_topk share.

#pragma once

#include "common/types.h"
#include "cpu/isa.h"
#include "cpu/penalty.h"

namespace dspark {

struct LinearTopk {
  DType dtype;
  const void *x, *weight, *bias;  // [rows, depth], [vocab, depth], [vocab] or null
  int64_t rows, vocab, depth, x_stride, weight_stride;
  int64_t k;
  const float* temperature;  // [rows] or null
  const int64_t *seed, *position, *id_map;
  int64_t vocab_offset;
  Penalty penalty;
  const int64_t* any_seen;  // [penalty.words], of all rows together

  int64_t task_rows;     // rows of the weight in one task
  int64_t padded_rows;   // rows, rounded up to the kernel's vectors
  float* packed;         // x as the kernel reads it
  float* keys;           // [workers, rows, k], descending; -inf where empty
  int32_t* columns;      // [workers, rows, k], rows of the weight
  float* threshold;      // [workers, padded_rows], the last key of every list
  float *maximum, *sum;  // [tasks, padded_rows]: the logsumexp is maximum + log(sum)
};

struct LinearTopkSizes {
  int64_t padded_rows, packed_floats, tile;
};

DSPARK_CPU_KERNEL(LinearTopkSizes linear_topk_sizes(const LinearTopk& p))
DSPARK_CPU_KERNEL(void linear_topk_pack(const LinearTopk& p))
DSPARK_CPU_KERNEL(void linear_topk_task(const LinearTopk& p, int64_t worker, int64_t task))

}  // namespace dspark
