// Rows of an operand lying across the lanes: their layout, packing, and choosing the product.

#pragma once

#include "cpu/kernels/dot.h"

namespace dspark::DSPARK_ISA {

template <int kValue>
struct Int {
  static constexpr int value = kValue;
};

// Calls f(Int<vectors>{}) for 1 <= vectors <= kMaxVectors.
template <typename F>
DSPARK_INLINE void with_vectors(int vectors, const F& f) {
  if (vectors == 1) {
    f(Int<1>{});
  } else if (vectors == 2) {
    f(Int<2>{});
  } else if constexpr (kMaxVectors > 2) {
    if (vectors == 3) {
      f(Int<3>{});
    } else {
      f(Int<4>{});
    }
  }
}

// Rows lie across the lanes of `vectors` vectors, taken in blocks of kMaxVectors. Few rows share
// one vector with the two halves of their sums, see dot_few_rows.
struct RowLayout {
  int64_t rows, depth;
  int words, vectors;
  bool few;

  template <typename T>
  static RowLayout of(int64_t rows, int64_t depth) {
    constexpr int kLine = kLineWords * DotOf<T>::type::kPerWord;
    const int64_t lines = depth > 0 ? (depth + kLine - 1) / kLine : 1;
    return {rows, depth, (int)lines * kLineWords, (int)((rows + kLanes - 1) / kLanes),
            rows <= kLanes / 2};
  }
  int block_vectors(int first) const {
    return vectors - first < kMaxVectors ? vectors - first : kMaxVectors;
  }
  // Where the words from `word` on of the block with the vector `first` are.
  int64_t offset(int first, int64_t word) const {
    if (few) return word * kLanes / 2;
    return ((int64_t)first * words + word * block_vectors(first)) * kLanes;
  }
  int64_t packed_floats() const { return (int64_t)vectors * words * kLanes; }
};

// Rows [rows, depth] -> packed [block][word][vector][lane]; few rows: [word / 2][row][word % 2].
// row_of(i) points to row i.
template <typename T, typename RowOf>
DSPARK_INLINE void pack_rows(const RowLayout& layout, const RowOf& row_of, float* packed) {
  using Dot = typename DotOf<T>::type;
  memset(packed, 0, layout.packed_floats() * sizeof(float));
  float staged[kLineWords];
  for (int row = 0; row < layout.rows; ++row) {
    const int first = row / (kLanes * kMaxVectors) * kMaxVectors;
    const int stride = layout.few ? kLanes / 2 : layout.block_vectors(first) * kLanes;
    for (int start = 0; start < layout.words; start += kLineWords) {
      const int64_t element = (int64_t)start * Dot::kPerWord;
      stage_words<Dot>(row_of(row) + element, layout.depth - element, kLineWords, staged);
      float* to = packed + layout.offset(first, start);
      for (int i = 0; i < kLineWords; ++i) {
        const int lane =
            layout.few ? i / 2 * kLanes + 2 * row + i % 2 : i * stride + row - first * kLanes;
        memcpy(to + lane, staged + i, sizeof(float));
      }
    }
  }
}

// c [n][m] (+)= Σ a[m] · b[n] for the block of packed rows with the vector `first` and one step of
// rows of b: rows_at_once(block_vectors) of them.
template <typename Dot, int kVectors>
DSPARK_INLINE void block_product(const RowLayout& layout, const float* a, const char* b,
                                 ptrdiff_t b_stride, int words, float* c, bool accumulate,
                                 const char* next) {
  if (kVectors == 1 && layout.few) {
    dot_few_rows<Dot>(a, b, b_stride, words, c, kLanes, accumulate, next);
  } else {
    dot_rows<Dot, kVectors>(a, b, b_stride, words, c, kVectors * kLanes, accumulate, next);
  }
}

}  // namespace dspark::DSPARK_ISA
