// The matrix unit of a CPU with AMX, which multiplies tiles of 16 rows of 16 words, a word being a
// pair of bf16 numbers.

#pragma once

#include "cpu/kernels/prefetch.h"

namespace dspark::DSPARK_ISA {

// c[n][m] (+)= Σ_w a[w][m] · b[n][w] for kVectors vectors of m and 16 rows n of b, whose `words`
// words, a multiple of 16, are contiguous. Strides are of rows, in bytes; as many bytes from `next`
// on as b has, or none, are prefetched meanwhile.
template <int kVectors>
DSPARK_NOINLINE void dot_tiles(const float* a, ptrdiff_t a_stride, const char* b,
                               ptrdiff_t b_stride, int words, float* c, ptrdiff_t c_stride,
                               bool accumulate, const char* next);

#ifdef __AMX_BF16__

// This thread's matrix unit, all registers whole tiles, while the object lives.
struct MatrixUnit {
  MatrixUnit() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int i = 0; i < 8; ++i) shapes.row_bytes[i] = sizeof(Floats), shapes.rows[i] = kLanes;
    _tile_loadconfig(&shapes);
  }
  ~MatrixUnit() { _tile_release(); }
  MatrixUnit(const MatrixUnit&) = delete;
};

template <int kVectors>
void dot_tiles(const float* a, ptrdiff_t a_stride, const char* b, ptrdiff_t b_stride, int words,
               float* c, ptrdiff_t c_stride, bool accumulate, const char* next) {
  asm volatile("" ::: "memory");  // the compiler does not know what a tile is loaded from
  if (accumulate) {
    _tile_loadd(0, c, c_stride);
    if constexpr (kVectors > 1) _tile_loadd(1, c + kLanes, c_stride);
    if constexpr (kVectors > 2) _tile_loadd(2, c + 2 * kLanes, c_stride);
    if constexpr (kVectors > 3) _tile_loadd(3, c + 3 * kLanes, c_stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int word = 0; word < words; word += kLanes) {
    prefetch_lines<kLanes>(&next);
    _tile_loadd(4, b, b_stride);
    _tile_loadd(5, a, a_stride);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (kVectors > 1) {
      _tile_loadd(6, a + kLanes, a_stride);
      _tile_dpbf16ps(1, 4, 6);
    }
    if constexpr (kVectors > 2) {
      _tile_loadd(7, a + 2 * kLanes, a_stride);
      _tile_dpbf16ps(2, 4, 7);
    }
    if constexpr (kVectors > 3) {
      _tile_loadd(5, a + 3 * kLanes, a_stride);
      _tile_dpbf16ps(3, 4, 5);
    }
    a += kLanes * a_stride / sizeof(float);
    b += sizeof(Floats);
  }
  _tile_stored(0, c, c_stride);
  if constexpr (kVectors > 1) _tile_stored(1, c + kLanes, c_stride);
  if constexpr (kVectors > 2) _tile_stored(2, c + 2 * kLanes, c_stride);
  if constexpr (kVectors > 3) _tile_stored(3, c + 3 * kLanes, c_stride);
}

#endif

}  // namespace dspark::DSPARK_ISA
