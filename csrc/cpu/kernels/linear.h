// x · Wᵀ for a tile of the rows of W and all rows of x: what linear_topk, draft_blocks and
// fused_linear share.

#pragma once

#include "cpu/kernels/rows.h"

namespace dspark::DSPARK_ISA {

constexpr int kMaxTile = 48;  // rows of W; a multiple of rows_at_once and of kLanes

// Whether dot_pairs multiplies these rows with W.
template <typename T>
DSPARK_INLINE bool in_pairs(const RowLayout& layout) {
  return __is_same(T, Bf16) && DotOf<T>::type::kPerWord == 1 && layout.rows <= kPairedRows &&
         layout.depth > 0 && layout.depth % (2 * kLanes) == 0;
}

// As many rows of W as fit well into the L2 cache; a multiple of those taken at once.
template <typename T>
DSPARK_INLINE int tile_rows(const RowLayout& layout) {
  constexpr int64_t kBytes = 128 * 1024;
  const int step = in_pairs<T>(layout) ? kLanes : rows_at_once<typename DotOf<T>::type>(1);
  const int64_t row_bytes = layout.depth > 0 ? layout.depth * sizeof(T) : 1;
  const int64_t rows = kBytes / row_bytes / step * step;
  return rows < step ? step : rows > kMaxTile ? kMaxTile : (int)rows;
}

// Calls f(Int<rows>{}) for 1 <= rows <= kPairedRows.
template <int kRows = 1, typename F>
DSPARK_INLINE void with_paired_rows(int64_t rows, const F& f) {
  if constexpr (kRows < kPairedRows) {
    if (rows > kRows) return with_paired_rows<kRows + 1>(rows, f);
  }
  f(Int<kRows>{});
}

// c [count, kVectors, kLanes] = W · x_blockᵀ for the block of x with the vector `first`. As much
// memory after these rows is prefetched. One vector of x stays in the L1 cache, so W is read from
// end to end; more vectors go in chunks of words. The sums are the same.
template <typename T, int kVectors>
DSPARK_INLINE void tile_product(const T* weight, int64_t stride, int count, const RowLayout& layout,
                                const float* packed, int first, float* c) {
  using Dot = typename DotOf<T>::type;
  constexpr int kRows = rows_at_once<Dot>(kVectors);
  const ptrdiff_t b_stride = stride * sizeof(T);
  const char* next = (const char*)(weight + count * stride);
  float staged[kRows][kChunkWords];
  const auto product = [&](int start, int n) __attribute__((always_inline)) {
    const int words = layout.words - start < kChunkWords ? layout.words - start : kChunkWords;
    const int64_t element = (int64_t)start * Dot::kPerWord;
    const bool whole = element + words * Dot::kPerWord <= layout.depth;
    const float* a = packed + layout.offset(first, start);
    const T* b = weight + n * stride + element;
    float* to = c + n * kVectors * kLanes;
    if (Dot::template kHolds<T> && whole && n + kRows <= count) {
      block_product<Dot, kVectors>(layout, a, (const char*)b, b_stride, words, to, start > 0, next);
      next += words * kRows * sizeof(float);
    } else {
      for (int i = 0; i < kRows; ++i) {
        const int64_t left = n + i < count ? layout.depth - element : 0;
        stage_words<Dot>(b + (left > 0 ? i * stride : 0), left, words, staged[i], count * b_stride);
      }
      block_product<Dot, kVectors>(layout, a, (const char*)staged, sizeof(staged[0]), words, to,
                                   start > 0, nullptr);
    }
  };
  if (kVectors == 1) {
    int n = 0;
    for (; in_pairs<T>(layout) && n + kLanes <= count; n += kLanes) {
      with_paired_rows(layout.rows, [&](auto rows) {
        dot_pairs<decltype(rows)::value>(packed, (const char*)(weight + n * stride), b_stride,
                                         layout.words, c + n * kLanes, count * b_stride);
      });
    }
    for (; n < count; n += kRows) {
      for (int start = 0; start < layout.words; start += kChunkWords) product(start, n);
    }
  } else {
    for (int start = 0; start < layout.words; start += kChunkWords) {
      for (int n = 0; n < count; n += kRows) product(start, n);
    }
  }
}

// Calls use(first_vector, vectors, c) for every block of rows of x, with c [count, vectors, kLanes]
// the products of these rows and `count` <= kMaxTile rows of W.
template <typename T, typename Use>
DSPARK_INLINE void linear_tile(const T* weight, int64_t stride, int count, const RowLayout& layout,
                               const float* packed, const Use& use) {
  alignas(64) float c[kMaxTile * kMaxVectors * kLanes];
  for (int first = 0; first < layout.vectors; first += kMaxVectors) {
    const int vectors = layout.block_vectors(first);
    with_vectors(vectors, [&](auto v) {
      tile_product<T, decltype(v)::value>(weight, stride, count, layout, packed, first, c);
    });
    use(first, vectors, c);
  }
}

}  // namespace dspark::DSPARK_ISA
