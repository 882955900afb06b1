// x · Wᵀ for a tile of the rows of W and all rows of x: what linear_topk and draft_blocks share.

#pragma once

#include "cpu/kernels/dot.h"

namespace dspark::DSPARK_ISA {

constexpr int kChunkWords =
    96;                       // of x at a time, so that a block of its rows stays in the L1 cache
constexpr int kMaxTile = 48;  // rows of W; a multiple of rows_at_once

// Rows of x lie across the lanes of `vectors` vectors, taken in blocks of kMaxVectors. Few rows
// share one vector with the two halves of their sums, see dot_few_rows.
struct RowLayout {
  int64_t rows, depth;
  int words, vectors;
  bool few;

  template <typename T>
  static RowLayout of(int64_t rows, int64_t depth) {
    const int64_t words = (depth + DotOf<T>::type::kPerWord - 1) / DotOf<T>::type::kPerWord;
    const int padded = (words > 0 ? words + kLineWords - 1 : kLineWords) / kLineWords * kLineWords;
    return {rows, depth, padded, (int)((rows + kLanes - 1) / kLanes), rows <= kLanes / 2};
  }
  int64_t packed_floats() const { return (int64_t)vectors * words * kLanes / (few ? 2 : 1); }
};

// `words` words of a row which has `elements` elements left; zeros beyond.
template <typename T>
DSPARK_INLINE void stage_words(const T* from, int64_t elements, int words, float* to) {
  using Dot = typename DotOf<T>::type;
  const int capacity = words * Dot::kPerWord;
  const int present = elements < 0 ? 0 : elements < capacity ? (int)elements : capacity;
  if constexpr (Dot::kPerWord * sizeof(T) == sizeof(float)) {
    memcpy(to, from, present * sizeof(T));
    memset((T*)to + present, 0, (capacity - present) * sizeof(T));
  } else {
    for (int i = 0; i < capacity; i += kLanes) {
      if (i + kLanes <= present) {
        store(to + i, load(from + i));
      } else {
        store(to + i, load_first(from + i, present > i ? present - i : 0));
      }
    }
  }
}

// x [rows, depth] -> packed [block][word][vector][lane]; with few rows [word / 2][row][word % 2].
template <typename T>
DSPARK_INLINE void pack_rows(const T* x, int64_t x_stride, const RowLayout& layout, float* packed) {
  float staged[kChunkWords];
  memset(packed, 0, layout.packed_floats() * sizeof(float));
  for (int64_t row = 0; row < layout.rows; ++row) {
    const int first = row / (kLanes * kMaxVectors) * kMaxVectors;
    const int vectors = layout.vectors - first < kMaxVectors ? layout.vectors - first : kMaxVectors;
    float* block = packed + (int64_t)first * layout.words * kLanes;
    for (int start = 0; start < layout.words; start += kChunkWords) {
      const int words = layout.words - start < kChunkWords ? layout.words - start : kChunkWords;
      const int64_t element = (int64_t)start * DotOf<T>::type::kPerWord;
      stage_words(x + row * x_stride + element, layout.depth - element, words, staged);
      for (int i = 0; i < words; ++i) {
        const int64_t word = start + i;
        if (layout.few) {
          memcpy(block + word / 2 * kLanes + 2 * row + word % 2, staged + i, sizeof(float));
        } else {
          memcpy(block + word * vectors * kLanes + (row - first * kLanes), staged + i,
                 sizeof(float));
        }
      }
    }
  }
}

// c [tile, vectors * kLanes] = W[tile] · x_blockᵀ. W has `count` rows, the other rows of c are
// zero; tile is a multiple of rows_at_once(1).
template <typename T, int kVectors, bool kFew>
DSPARK_INLINE void tile_product(const T* weight, int64_t stride, int count, int tile,
                                const RowLayout& layout, const float* block, float* c) {
  using Dot = typename DotOf<T>::type;
  constexpr int kRows = rows_at_once(kVectors);
  constexpr bool kInPlace = Dot::kPerWord * sizeof(T) == sizeof(float);
  float staged[kRows][kChunkWords];
  const ptrdiff_t ahead = tile * stride * sizeof(T);
  for (int start = 0; start < layout.words; start += kChunkWords) {
    const int words = layout.words - start < kChunkWords ? layout.words - start : kChunkWords;
    const int64_t element = (int64_t)start * Dot::kPerWord;
    const bool whole = element + words * Dot::kPerWord <= layout.depth;
    const float* a = block + (int64_t)start * (kFew ? kLanes / 2 : kVectors * kLanes);
    for (int n = 0; n < count; n += kRows) {
      const T* row = weight + n * stride + element;
      const char* b = (const char*)row;
      ptrdiff_t b_stride = stride * sizeof(T), prefetch = ahead;
      if (!(kInPlace && whole && n + kRows <= count)) {
        for (int i = 0; i < kRows; ++i) {
          const bool valid = n + i < count;
          stage_words(valid ? row + i * stride : weight, valid ? layout.depth - element : 0, words,
                      staged[i]);
        }
        b = (const char*)staged, b_stride = sizeof(staged[0]), prefetch = 0;
      }
      float* to = c + n * kVectors * kLanes;
      if constexpr (kFew) {
        dot_few_rows<Dot>(a, b, b_stride, words, to, kLanes, start > 0, prefetch);
      } else {
        dot_rows<Dot, kVectors>(a, b, b_stride, words, to, kVectors * kLanes, start > 0, prefetch);
      }
    }
  }
}

// Calls use(first_vector, vectors, c) for every block of rows of x, with c [count, vectors, kLanes]
// the products of these rows and `count` rows of W.
template <typename T, typename Use>
DSPARK_INLINE void linear_tile(const T* weight, int64_t stride, int count, int tile,
                               const RowLayout& layout, const float* packed, const Use& use) {
  alignas(64) float c[kMaxTile * kMaxVectors * kLanes];
  for (int first = 0; first < layout.vectors; first += kMaxVectors) {
    const float* block = packed + (int64_t)first * layout.words * kLanes;
    const int left = layout.vectors - first;
    const int vectors = left < kMaxVectors ? left : kMaxVectors;
    if (layout.few) {
      tile_product<T, 1, true>(weight, stride, count, tile, layout, block, c);
    } else if (vectors == 1) {
      tile_product<T, 1, false>(weight, stride, count, tile, layout, block, c);
    } else if (vectors == 2) {
      tile_product<T, 2, false>(weight, stride, count, tile, layout, block, c);
    } else if constexpr (kMaxVectors > 2) {
      if (vectors == 3) {
        tile_product<T, 3, false>(weight, stride, count, tile, layout, block, c);
      } else {
        tile_product<T, 4, false>(weight, stride, count, tile, layout, block, c);
      }
    }
    use(first, vectors, c);
  }
}

// As many rows of W as fit well into the L2 cache.
DSPARK_INLINE int tile_rows(int64_t row_bytes) {
  constexpr int kStep = rows_at_once(1), kBytes = 128 * 1024;
  const int64_t rows = kBytes / (row_bytes > 0 ? row_bytes : 1) / kStep * kStep;
  return rows < kStep ? kStep : rows > kMaxTile ? kMaxTile : (int)rows;
}

}  // namespace dspark::DSPARK_ISA
