// What a repetition penalty makes of a logit.

#pragma once

#include "cpu/kernels/math.h"
#include "cpu/penalty.h"

namespace dspark::DSPARK_ISA {

// The bits of the 64 tokens of one word before the draw of one row.
DSPARK_INLINE uint64_t seen_bits(const Penalty& p, int64_t row, int64_t word) {
  return word < p.words ? (uint64_t)p.seen[row / p.rows_per_entry * p.words + word] : 0;
}

DSPARK_INLINE float penalized(const Penalty& p, int64_t row, float logit) {
  return logit > 0 ? logit / p.penalty[row] : logit * p.penalty[row];
}

}  // namespace dspark::DSPARK_ISA
