// Root mean square normalization of one row.

#pragma once

#include "cpu/kernels/simd.h"

namespace dspark::DSPARK_ISA {

// to[i] = from[i] / sqrt(mean(from²) + eps) · weight[i]
template <typename From, typename T, typename To>
DSPARK_INLINE void rms_norm(const From* from, const T* weight, int64_t size, float eps, To* to) {
  Floats squares = {};
  for (int64_t i = 0; i < size; i += kLanes) {
    const Floats x = load_up_to(from + i, size - i);
    squares += x * x;
  }
  float sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += squares[lane];
  const float scale = 1 / __builtin_sqrtf(sum / size + eps);
  for (int64_t i = 0; i < size; i += kLanes) {
    const Floats x = load_up_to(from + i, size - i) * scale;
    store_up_to(to + i, x * load_up_to(weight + i, size - i), size - i);
  }
}

}  // namespace dspark::DSPARK_ISA
