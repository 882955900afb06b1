// Root mean square normalization of one row.

#pragma once

#include "cpu/kernels/simd.h"

namespace dspark::DSPARK_ISA {

// 1 / sqrt(mean(row²) + eps)
template <typename T>
DSPARK_INLINE float rms_scale(const T* row, int64_t size, float eps) {
  Floats squares = {};
  for (int64_t i = 0; i < size; i += kLanes) {
    const Floats x = load_up_to(row + i, size - i);
    squares += x * x;
  }
  float sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += squares[lane];
  return 1 / __builtin_sqrtf(sum / size + eps);
}

// to[i] = from[i] / sqrt(mean(from²) + eps) · weight[i]
template <typename T>
DSPARK_INLINE void rms_norm(const T* from, const T* weight, int64_t size, float eps, T* to) {
  const float scale = rms_scale(from, size, eps);
  for (int64_t i = 0; i < size; i += kLanes) {
    const Floats x = load_up_to(from + i, size - i) * scale;
    store_up_to(to + i, x * load_up_to(weight + i, size - i), size - i);
  }
}

}  // namespace dspark::DSPARK_ISA
