// Matrix products as the kernels need them: rows of one operand lie across the lanes, the other
// operand is broadcast, so that sums never cross lanes. A *word* is what one lane multiplies at
// once: a float, or a pair of bf16 numbers where the CPU can multiply these.

#pragma once

#include "cpu/kernels/simd.h"

namespace dspark::DSPARK_ISA {

struct Fp32Dot {
  using Element = float;
  static constexpr int kPerWord = 1;
  DSPARK_INLINE Floats multiply_add(Floats a, Floats b, Floats sum) { return a * b + sum; }
};

#ifdef __AVX512BF16__
struct Bf16Dot {
  using Element = Bf16;
  static constexpr int kPerWord = 2;
  DSPARK_INLINE Floats multiply_add(Floats a, Floats b, Floats sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
};
#endif

// How elements of type T are multiplied.
template <typename T>
struct DotOf {
  using type = Fp32Dot;
};
#ifdef __AVX512BF16__
template <>
struct DotOf<Bf16> {
  using type = Bf16Dot;
};
#endif

constexpr int kLineWords = 16;  // words in a cache line
#ifdef __AVX512F__
constexpr int kAccumulators = 24, kMaxVectors = 4;  // of 32 registers
#else
constexpr int kAccumulators = 12, kMaxVectors = 2;  // of 16 registers
#endif

// Rows of b taken at once against kVectors vectors of rows of a, two sums for each.
constexpr int rows_at_once(int vectors) { return kAccumulators / 2 / vectors; }

// Brings the next line of kRows rows of b towards the cache.
template <int kRows>
DSPARK_INLINE void prefetch_rows(const char* b, ptrdiff_t b_stride) {
#pragma GCC unroll 12
  for (int n = 0; n < kRows; ++n) __builtin_prefetch(b + n * b_stride, 0, 2);
}

// The next two stay functions of their own: inlined, their pointers would not get registers.

// c[n][m] (+)= Σ_w a[w][m] · b[n][w] for kVectors vectors of rows m and rows_at_once rows n of b,
// whose `words` words, a multiple of 16, are contiguous. Even and odd words have sums of their own.
template <typename Dot, int kVectors>
DSPARK_NOINLINE void dot_rows(const float* a, const char* b, ptrdiff_t b_stride, int words,
                              float* c, int c_stride, bool accumulate, ptrdiff_t prefetch) {
  constexpr int kRows = rows_at_once(kVectors);
  Floats even[kRows][kVectors] = {}, odd[kRows][kVectors] = {};
  for (int line = 0; line < words; line += kLineWords) {
    prefetch_rows<kRows>(b + prefetch, b_stride);
#pragma GCC unroll 16
    for (int w = 0; w < kLineWords; ++w) {
      Floats x[kVectors];
#pragma GCC unroll 4
      for (int m = 0; m < kVectors; ++m) x[m] = load(a + (w * kVectors + m) * kLanes);
#pragma GCC unroll 12
      for (int n = 0; n < kRows; ++n) {
        const Floats y = broadcast32(b + n * b_stride + w * 4);
#pragma GCC unroll 4
        for (int m = 0; m < kVectors; ++m) {
          Floats& sum = w % 2 ? odd[n][m] : even[n][m];
          sum = Dot::multiply_add(x[m], y, sum);
        }
      }
    }
    a += kLineWords * kVectors * kLanes;
    b += kLineWords * 4;
  }
#pragma GCC unroll 12
  for (int n = 0; n < kRows; ++n) {
#pragma GCC unroll 4
    for (int m = 0; m < kVectors; ++m) {
      float* to = c + n * c_stride + m * kLanes;
      const Floats sum = even[n][m] + odd[n][m];
      store(to, accumulate ? load(to) + sum : sum);
    }
  }
}

// The same for at most half a vector of rows: lane 2m holds the even words of row m, lane 2m + 1
// its odd words. It adds the same numbers in the same order as dot_rows.
template <typename Dot>
DSPARK_NOINLINE void dot_few_rows(const float* a, const char* b, ptrdiff_t b_stride, int words,
                                  float* c, int c_stride, bool accumulate, ptrdiff_t prefetch) {
  constexpr int kRows = rows_at_once(1);
  Floats sums[kRows] = {};
  for (int line = 0; line < words; line += kLineWords) {
    prefetch_rows<kRows>(b + prefetch, b_stride);
#pragma GCC unroll 8
    for (int w = 0; w < kLineWords; w += 2) {
      const Floats x = load(a + w / 2 * kLanes);
#pragma GCC unroll 12
      for (int n = 0; n < kRows; ++n) {
        sums[n] = Dot::multiply_add(x, broadcast64(b + n * b_stride + w * 4), sums[n]);
      }
    }
    a += kLineWords / 2 * kLanes;
    b += kLineWords * 4;
  }
#pragma GCC unroll 12
  for (int n = 0; n < kRows; ++n) {
    float* to = c + n * c_stride;
    const Floats sum = add_pairs(sums[n]);
    store(to, accumulate ? load(to) + sum : sum);
  }
}

}  // namespace dspark::DSPARK_ISA
