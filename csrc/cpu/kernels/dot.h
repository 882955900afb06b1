// Matrix products as the kernels need them: rows of one operand lie across the lanes, the other
// operand is broadcast, so that sums never cross lanes. A *word* is what one lane multiplies at
// once: a float, or a pair of bf16 numbers where the CPU can multiply these.

#pragma once

#include "cpu/kernels/matrix_unit.h"

namespace dspark::DSPARK_ISA {

struct [[maybe_unused]] NoUnit {};  // products of vectors need none

struct Fp32Dot {
  using Element = float;
  using Unit = NoUnit;
  static constexpr bool kInTiles = false;
  static constexpr int kPerWord = 1;
  template <typename T>
  static constexpr bool kHolds = sizeof(T) == sizeof(float);
  DSPARK_INLINE Floats multiply_add(Floats a, Floats b, Floats sum) { return a * b + sum; }
};

#ifdef __AVX512BF16__
struct Bf16Dot {
  using Element = Bf16;
#ifdef __AMX_BF16__
  using Unit = MatrixUnit;
  static constexpr bool kInTiles = true;
#else
  using Unit = NoUnit;
  static constexpr bool kInTiles = false;
#endif
  static constexpr int kPerWord = 2;
  template <typename T>
  static constexpr bool kHolds = __is_same(T, Bf16);
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

constexpr int kLineWords = 16;
constexpr int kChunkWords = 96;  // of rows at a time, so that a block of them stays in the L1 cache

// `words` words of a row which has `elements` elements left; zeros beyond. The same row
// `prefetch` bytes ahead is wanted next; 0 for none.
template <typename Dot, typename T>
DSPARK_INLINE void stage_words(const T* from, int64_t elements, int words, float* to,
                               ptrdiff_t prefetch = 0) {
  using Element = typename Dot::Element;
  constexpr int kElements = Dot::template kHolds<T> ? Dot::kPerWord : 1;  // in a lane
  const int capacity = words * Dot::kPerWord;
  const int present = elements < 0 ? 0 : elements < capacity ? (int)elements : capacity;
  if (prefetch != 0) prefetch_row((const char*)from + prefetch, present * sizeof(T));
  const auto stage = [&](const T* source, int i) __attribute__((always_inline)) {
    if constexpr (Dot::template kHolds<T>) {
      store_as((T*)to + i, load_as<Floats>(source));
    } else {
      store((Element*)to + i, load(source));
    }
  };
  if (present == capacity) {
    for (int i = 0; i < capacity; i += kLanes * kElements) stage(from + i, i);
    return;
  }
  for (int i = 0; i < capacity; i += kLanes * kElements) {
    const int left = present - i;
    T padded[kLanes * kElements] = {};
    for (int e = 0; e < left && e < kLanes * kElements; ++e) padded[e] = from[i + e];
    stage(padded, i);
  }
}

#if defined(__AVX512F__)
constexpr int kAccumulators = 24, kMaxVectors = 4, kPairedRows = 5;  // of 32 registers
#elif defined(__AVX2__)
constexpr int kAccumulators = 12, kMaxVectors = 2, kPairedRows = 3;  // of 16 registers
#else
constexpr int kAccumulators = 12, kMaxVectors = 2, kPairedRows = 1;
#endif

// Rows of b taken at once against kVectors vectors of rows of a, two sums for each; or a tile of b.
template <typename Dot>
constexpr int rows_at_once(int vectors) {
  return Dot::kInTiles ? kLanes : kAccumulators / 2 / vectors;
}

// The next functions are never inlined: their pointers would not get registers.

// c[n][m] (+)= Σ_w a[w][m] · b[n][w] for kVectors vectors of rows m and rows_at_once rows n of b,
// whose `words` words, a multiple of 16, are contiguous. Even and odd words have sums of their own.
// As many bytes from `next` on, or none, are prefetched meanwhile.
template <typename Dot, int kVectors>
DSPARK_NOINLINE void dot_rows(const float* a, const char* b, ptrdiff_t b_stride, int words,
                              float* c, int c_stride, bool accumulate, const char* next) {
  constexpr int kRows = rows_at_once<Dot>(kVectors);
  Floats even[kRows][kVectors] = {}, odd[kRows][kVectors] = {};
  for (int line = 0; line < words; line += kLineWords) {
    prefetch_lines<kRows>(&next);
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
                                  float* c, int c_stride, bool accumulate, const char* next) {
  constexpr int kRows = rows_at_once<Dot>(1);
  Floats sums[kRows] = {};
  for (int line = 0; line < words; line += kLineWords) {
    prefetch_lines<kRows>(&next);
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

// The same for kLanes whole rows of b in bf16 and at most kPairedRows rows of a, laid out as for
// dot_few_rows, where the CPU multiplies only floats. Here rows of b lie across the lanes, in pairs
// of numbers: for so few rows of a that takes less than widening b. Its sums are those of chunks.
template <int kRows>
DSPARK_NOINLINE void dot_pairs(const float* a, const char* b, ptrdiff_t b_stride, int words,
                               float* c, ptrdiff_t prefetch) {
  Floats total[kRows];
  for (int chunk = 0; chunk < words; chunk += kChunkWords) {
    const int end = words - chunk < kChunkWords ? words : chunk + kChunkWords;
    Floats even[kRows] = {}, odd[kRows] = {};
    for (int word = chunk; word < end; word += 2 * kLanes) {
      Floats pairs[kLanes];
#pragma GCC unroll 16
      for (int n = 0; n < kLanes; ++n) {
        const char* row = b + n * b_stride;
        __builtin_prefetch(row + prefetch, 0, 2);
        pairs[n] = load_as<Floats>(row);
      }
      transpose(pairs);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const Floats x = (Floats)((Words)pairs[i] << 16);
        const Floats y = (Floats)((Words)pairs[i] & 0xFFFF0000u);
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) {
          even[m] = Fp32Dot::multiply_add(splat(a[2 * m]), x, even[m]);
          odd[m] = Fp32Dot::multiply_add(splat(a[2 * m + 1]), y, odd[m]);
        }
        a += kLanes;
      }
      b += sizeof(Floats);
    }
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      const Floats sum = even[m] + odd[m];
      total[m] = chunk > 0 ? total[m] + sum : sum;
    }
  }
  memset(c, 0, kLanes * sizeof(Floats));
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) {
    float sums[kLanes];
    store(sums, total[m]);
    for (int n = 0; n < kLanes; ++n) c[n * kLanes + m] = sums[n];
  }
}

// Rows of c taken at once by weighted_sums: a power of two which divides kLanes.
constexpr int rows_of_sums(int vectors) { return kLanes / (vectors == 3 ? 4 : vectors); }

// c[n][m] = c[n][m] · factor[n] + Σ_w a[w][m] · b[w][n] for kVectors vectors m and rows_of_sums
// rows n, with one word of a row of b for every n.
template <typename Dot, int kVectors>
DSPARK_NOINLINE void weighted_sums(const float* a, int a_stride, const float* b, int b_stride,
                                   int words, const float* factor, float* c, int c_stride) {
  constexpr int kRows = rows_of_sums(kVectors);
  Floats sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int n = 0; n < kRows; ++n) {
#pragma GCC unroll 4
    for (int m = 0; m < kVectors; ++m) {
      sums[n][m] = load(c + n * c_stride + m * kLanes) * splat(factor[n]);
    }
  }
  for (int w = 0; w < words; ++w) {
    Floats x[kVectors];
#pragma GCC unroll 4
    for (int m = 0; m < kVectors; ++m) x[m] = load(a + m * kLanes);
#pragma GCC unroll 16
    for (int n = 0; n < kRows; ++n) {
      const Floats y = broadcast32(b + n);
#pragma GCC unroll 4
      for (int m = 0; m < kVectors; ++m) sums[n][m] = Dot::multiply_add(x[m], y, sums[n][m]);
    }
    a += a_stride;
    b += b_stride;
  }
#pragma GCC unroll 16
  for (int n = 0; n < kRows; ++n) {
#pragma GCC unroll 4
    for (int m = 0; m < kVectors; ++m) store(c + n * c_stride + m * kLanes, sums[n][m]);
  }
}

}  // namespace dspark::DSPARK_ISA
