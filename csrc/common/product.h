// Matrices in a group's workspace: transposing rows into them, and products.
//
// They are kept as the group reads them: rows in memory, columns across lanes, so that products
// need no sums over lanes. Pitches are multiples of G::kWidth, the padding is zero.

#pragma once

#include "common/group.h"

namespace dspark {

constexpr int kPitch = 16;  // every kWidth divides it

DSPARK_FORCE_INLINE constexpr int padded(int count) {
  return (count + kPitch - 1) / kPitch * kPitch;
}

// For quotient(): 2³¹ / divisor, rounded up.
DSPARK_FORCE_INLINE constexpr uint32_t inverse_of(int divisor) {
  return divisor > 0 ? (uint32_t{1} << 31) / static_cast<uint32_t>(divisor) + 1 : 0;
}
// value / divisor, for values and divisors up to 2¹⁵.
DSPARK_FORCE_INLINE constexpr int quotient(int value, uint32_t inverse) {
  return static_cast<int>(uint64_t{static_cast<uint32_t>(value)} * inverse >> 31);
}

// to[m][k][i] = scale(m, k) · row(m, i)[k] for i < count rows of `depth` numbers of each matrix m,
// in square blocks; zeros where a row is null and for the padding. Neighbouring members take
// neighbouring rows: they store side by side.
template <class G, class Row, class Scale>
DSPARK_HOST_DEVICE void transpose(G& g, int matrices, int count, int depth, int pitch, float* to,
                                  const Row& row, const Scale& scale) {
  const int across = pitch / G::kWidth, blocks = across * (padded(depth) / G::kWidth);
  for (int item = g.lane(); item < matrices * blocks; item += g.size()) {
    const int m = item / blocks, block_index = item - m * blocks;
    const int first = block_index % across * G::kWidth, k = block_index / across * G::kWidth;
    decltype(row(0, 0)) rows[G::kWidth];  // without branches, so that they are found side by side
    DSPARK_UNROLL
    for (int i = 0; i < G::kWidth; ++i) rows[i] = row(m, first + i < count ? first + i : count - 1);
    DSPARK_UNROLL
    for (int i = 0; i < G::kWidth; ++i) rows[i] = first + i < count ? rows[i] : nullptr;
    typename G::Vector block[G::kWidth];
    G::load_rows(rows, k, depth - k, block);
    G::transpose(block);
    float* const out = to + (int64_t{m} * padded(depth) + k) * pitch + first;
    DSPARK_UNROLL
    for (int j = 0; j < G::kWidth; ++j) {
      const float factor = k + j < depth ? scale(m, k + j) : 0.0f;
      G::store(out + j * pitch, block[j] * G::splat(factor));
    }
  }
  g.sync();
}

// A tile of a product: rows `first` on, kTile of them, and kWidth columns.
template <int kTile, class G>
DSPARK_HOST_DEVICE void product_tile(int first, int rows, int depth, int pitch, const float* in,
                                     int in_pitch, const float* right, float* out) {
  using V = typename G::Vector;
  const float* from[kTile];
  V sum[kTile];
  DSPARK_UNROLL
  for (int t = 0; t < kTile; ++t) {
    from[t] = in + (first + t < rows ? first + t : rows - 1) * in_pitch;
    sum[t] = G::splat(0.0f);
  }
  for (int k = 0; k < depth; k += G::kStep) {
    typename G::Step left[kTile];
    DSPARK_UNROLL
    for (int t = 0; t < kTile; ++t) left[t] = G::load_step(from[t] + k);
    DSPARK_UNROLL
    for (int j = 0; j < G::kStep; ++j) {
      const V x = G::load_own(right + (k + j) * pitch);
      DSPARK_UNROLL
      for (int t = 0; t < kTile; ++t) sum[t] += G::broadcast(left[t], j) * x;
    }
  }
  DSPARK_UNROLL
  for (int t = 0; t < kTile; ++t) {
    if (first + t < rows) G::store(out + (first + t) * pitch, sum[t]);
  }
}

// out[f][j] = Σ_k in[f][k] · right[k][j] for f < rows, j < pitch. Both matrices have zeros between
// the depth and the next multiple of kStep.
template <class G>
DSPARK_HOST_DEVICE void product(G& g, int rows, int depth, int pitch, const float* in, int in_pitch,
                                const float* right, float* out) {
  const int columns = pitch / G::kWidth;
  const bool small = rows * columns < G::kTile * g.size();  // small tiles keep more members busy
  const int tile = small ? G::kSmallTile : G::kTile, tiles = (rows + tile - 1) / tile;
  for (int item = g.lane(); item < tiles * columns; item += g.size()) {
    const int first = item / columns * tile, column = item % columns * G::kWidth;
    if (small) {
      product_tile<G::kSmallTile, G>(first, rows, depth, pitch, in, in_pitch, right + column,
                                     out + column);
    } else {
      product_tile<G::kTile, G>(first, rows, depth, pitch, in, in_pitch, right + column,
                                out + column);
    }
  }
  g.sync();
}

}  // namespace dspark
