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
            rows <= kLanes / 2 && !DotOf<T>::type::kInTiles};
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

// kLanes words of a row which has `elements` elements left; zeros beyond.
template <typename Dot, typename T>
DSPARK_INLINE Floats row_words(const T* row, int64_t elements) {
  if (Dot::template kHolds<T> && elements >= kLanes * Dot::kPerWord) return load_as<Floats>(row);
  float staged[kLanes];
  stage_words<Dot>(row, elements, kLanes, staged);
  return load(staged);
}

// Few rows -> packed [word / 2][row][word % 2].
template <typename T, typename RowOf>
DSPARK_INLINE void pack_few_rows(const RowLayout& layout, const RowOf& row_of, float* packed) {
  using Dot = typename DotOf<T>::type;
  memset(packed, 0, layout.packed_floats() * sizeof(float));
  for (int row = 0; row < layout.rows; ++row) {
    for (int start = 0; start < layout.words; start += kLanes) {
      const int64_t element = (int64_t)start * Dot::kPerWord;
      float words[kLanes];
      store(words, row_words<Dot>(row_of(row) + element, layout.depth - element));
      float* to = packed + layout.offset(0, start) + 2 * row;
      for (int i = 0; i < kLanes; i += 2) memcpy(to + i / 2 * kLanes, words + i, 2 * sizeof(float));
    }
  }
}

// Rows [rows, depth] -> packed [block][word][vector][lane], the vectors from `begin` to `end`.
// row_of(i) points to row i.
template <typename T, typename RowOf>
DSPARK_INLINE void pack_rows(const RowLayout& layout, const RowOf& row_of, float* packed, int begin,
                             int end) {
  using Dot = typename DotOf<T>::type;
  if (layout.few) return pack_few_rows<T>(layout, row_of, packed);
  for (int vector = begin; vector < end; ++vector) {
    const int first = vector / kMaxVectors * kMaxVectors;
    const int stride = layout.block_vectors(first) * kLanes;
    const int64_t left = layout.rows - vector * kLanes;
    for (int start = 0; start < layout.words; start += kLanes) {
      const int64_t element = (int64_t)start * Dot::kPerWord;
      Floats tile[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        tile[i] = Floats{};
        if (i >= left) continue;
        const T* row = row_of(vector * kLanes + i);
        tile[i] = row_words<Dot>(row + element, layout.depth - element);
      }
      transpose(tile);
      float* to = packed + layout.offset(first, start) + (vector - first) * kLanes;
      for (int i = 0; i < kLanes; ++i) store(to + i * stride, tile[i]);
    }
  }
}

template <typename T, typename RowOf>
DSPARK_INLINE void pack_rows(const RowLayout& layout, const RowOf& row_of, float* packed) {
  pack_rows<T>(layout, row_of, packed, 0, layout.vectors);
}

// c [n][m] (+)= Σ a[m] · b[n] for the block of packed rows with the vector `first` and one step of
// rows of b: rows_at_once of them.
template <typename Dot, int kVectors>
DSPARK_INLINE void block_product(const RowLayout& layout, const float* a, const char* b,
                                 ptrdiff_t b_stride, int words, float* c, bool accumulate,
                                 const char* next) {
  if constexpr (Dot::kInTiles) {
    constexpr ptrdiff_t kStride = kVectors * sizeof(Floats);
    dot_tiles<kVectors>(a, kStride, b, b_stride, words, c, kStride, accumulate, next);
  } else if (kVectors == 1 && layout.few) {
    dot_few_rows<Dot>(a, b, b_stride, words, c, kLanes, accumulate, next);
  } else {
    dot_rows<Dot, kVectors>(a, b, b_stride, words, c, kVectors * kLanes, accumulate, next);
  }
}

}  // namespace dspark::DSPARK_ISA
