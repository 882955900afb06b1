// What the launcher and the kernels of sample_logits share.

#pragma once

#include "common/types.h"
#include "cpu/isa.h"
#include "cpu/penalty.h"

namespace dspark {

struct SampleLogits {
  DType dtype;
  const void* logits;  // [rows, vocab]
  const int64_t* ids;  // [rows, vocab], their tokens, or null: the columns
  int64_t rows, vocab, stride;
  const float* temperature;  // [rows] or null, as all that follow
  const int64_t *seed, *position;
  const int32_t* top_k;
  const float *top_p, *min_p;
  Penalty penalty;
};

// The floats of memory that one row takes.
DSPARK_CPU_KERNEL(int64_t sample_logits_floats(const SampleLogits& p))
DSPARK_CPU_KERNEL(int64_t sample_logits_row(const SampleLogits& p, int64_t row, float* memory))

}  // namespace dspark
