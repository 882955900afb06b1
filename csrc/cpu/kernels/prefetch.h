// Bringing memory towards the cache ahead of its use.

#pragma once

#include "cpu/kernels/simd.h"

namespace dspark::DSPARK_ISA {

constexpr int kLineBytes = 64;

DSPARK_INLINE void prefetch_row(const char* row, int64_t bytes) {
  for (int64_t byte = 0; byte < bytes; byte += kLineBytes) __builtin_prefetch(row + byte, 0, 2);
}

// kLines lines from `next` on, which moves on; does nothing with null.
template <int kLines>
DSPARK_INLINE void prefetch_lines(const char** next) {
  if (*next == nullptr) return;
#pragma GCC unroll 16
  for (int n = 0; n < kLines; ++n) __builtin_prefetch(*next + n * kLineBytes, 0, 2);
  *next += kLines * kLineBytes;
}

}  // namespace dspark::DSPARK_ISA
