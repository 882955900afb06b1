// One vector type for every instruction set, built on the compiler's vector extension; intrinsics
// only where that has no name for an instruction. Everything is inlined: no symbol of this header
// may exist, or the linker could give a function compiled for AVX-512 to the portable kernels.

#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "common/types.h"

#define DSPARK_INLINE static inline __attribute__((always_inline))
#define DSPARK_NOINLINE static __attribute__((noinline))

namespace dspark::DSPARK_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint64_t Longs __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Shorts __attribute__((vector_size(2 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

constexpr float kInfinity = __builtin_inff();

template <typename V>
DSPARK_INLINE V load_as(const void* from) {
  V value;
  memcpy(&value, from, sizeof(V));
  return value;
}

template <typename V>
DSPARK_INLINE void store_as(void* to, V value) {
  memcpy(to, &value, sizeof(V));
}

DSPARK_INLINE Floats splat(float x) { return x - Floats{}; }
DSPARK_INLINE Words splat(uint32_t x) { return x - Words{}; }

DSPARK_INLINE Ints lane_numbers() {
  Ints numbers;
  for (int i = 0; i < kLanes; ++i) numbers[i] = i;
  return numbers;
}

// One 32-bit or 64-bit word of memory in every lane or pair of lanes.
DSPARK_INLINE Floats broadcast32(const void* from) {
  return (Floats)splat(load_as<uint32_t>(from));
}
DSPARK_INLINE Floats broadcast64(const void* from) {
  return (Floats)(load_as<uint64_t>(from) - Longs{});
}

DSPARK_INLINE Floats select(Ints mask, Floats yes, Floats no) { return mask ? yes : no; }

// a > b ? a : b, so that a NaN in a gives b
DSPARK_INLINE Floats max(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// Bit i is set iff a > b in lane i.
DSPARK_INLINE uint32_t greater_bits(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
#else
  const Ints greater = a > b;
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= (greater[i] & 1u) << i;
  return bits;
#endif
}

// Lane i is a[2i] + a[2i + 1] in the first half of the lanes, and again in the second half.
DSPARK_INLINE Floats add_pairs(Floats a) {
#if defined(__AVX512F__)
  const __m512i even = _mm512_set_epi32(14, 12, 10, 8, 6, 4, 2, 0, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  return _mm512_permutexvar_ps(even, a) + _mm512_permutexvar_ps(odd, a);
#elif defined(__AVX2__)
  return (Floats)_mm256_permute4x64_pd((__m256d)_mm256_hadd_ps(a, a), 0xD8);
#else
  return Floats{a[0] + a[1], a[2] + a[3], a[0] + a[1], a[2] + a[3]};
#endif
}

// Shuffles of two vectors, quarter by quarter (128 bits): lanes i and j of a, then k and l of b,
// the latter counted from 4.
template <int i, int j, int k, int l>
DSPARK_INLINE Floats shuffle_quarters(Floats a, Floats b) {
  [[maybe_unused]] constexpr auto at = [](int lane, int quarter) {
    return (lane < 4 ? lane : lane + kLanes - 4) + 4 * quarter;
  };
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, at(i, 0), at(j, 0), at(k, 0), at(l, 0), at(i, 1), at(j, 1),
                                 at(k, 1), at(l, 1), at(i, 2), at(j, 2), at(k, 2), at(l, 2),
                                 at(i, 3), at(j, 3), at(k, 3), at(l, 3));
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, at(i, 0), at(j, 0), at(k, 0), at(l, 0), at(i, 1), at(j, 1),
                                 at(k, 1), at(l, 1));
#else
  return __builtin_shufflevector(a, b, i, j, k, l);
#endif
}

// Lane j of vector i becomes lane i of vector j: in blocks of 4 x 4, then whole quarters.
DSPARK_INLINE void transpose(Floats (&tile)[kLanes]) {
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {
    Floats* t = tile + i;
    const Floats low01 = shuffle_quarters<0, 4, 1, 5>(t[0], t[1]);
    const Floats high01 = shuffle_quarters<2, 6, 3, 7>(t[0], t[1]);
    const Floats low23 = shuffle_quarters<0, 4, 1, 5>(t[2], t[3]);
    const Floats high23 = shuffle_quarters<2, 6, 3, 7>(t[2], t[3]);
    t[0] = shuffle_quarters<0, 1, 4, 5>(low01, low23);
    t[1] = shuffle_quarters<2, 3, 6, 7>(low01, low23);
    t[2] = shuffle_quarters<0, 1, 4, 5>(high01, high23);
    t[3] = shuffle_quarters<2, 3, 6, 7>(high01, high23);
  }
#if defined(__AVX512F__)
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const Floats even01 = _mm512_shuffle_f32x4(tile[k], tile[4 + k], 0x88);
    const Floats odd01 = _mm512_shuffle_f32x4(tile[k], tile[4 + k], 0xDD);
    const Floats even23 = _mm512_shuffle_f32x4(tile[8 + k], tile[12 + k], 0x88);
    const Floats odd23 = _mm512_shuffle_f32x4(tile[8 + k], tile[12 + k], 0xDD);
    tile[k] = _mm512_shuffle_f32x4(even01, even23, 0x88);
    tile[4 + k] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
    tile[8 + k] = _mm512_shuffle_f32x4(even01, even23, 0xDD);
    tile[12 + k] = _mm512_shuffle_f32x4(odd01, odd23, 0xDD);
  }
#elif defined(__AVX2__)
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const Floats first = tile[k], second = tile[4 + k];
    tile[k] = _mm256_permute2f128_ps(first, second, 0x20);
    tile[4 + k] = _mm256_permute2f128_ps(first, second, 0x31);
  }
#endif
}

// The high and low 32 bits of the products with one factor.
DSPARK_INLINE void multiply_wide(uint32_t factor, Words x, Words* high, Words* low) {
  const Longs even = (Longs)x & 0xFFFFFFFFull, odd = (Longs)x >> 32;
#if defined(__AVX512F__)
  const __m512i f = _mm512_set1_epi64(factor);
  const Longs p = (Longs)_mm512_mul_epu32((__m512i)even, f);
  const Longs q = (Longs)_mm512_mul_epu32((__m512i)odd, f);
#elif defined(__AVX2__)
  const __m256i f = _mm256_set1_epi64x(factor);
  const Longs p = (Longs)_mm256_mul_epu32((__m256i)even, f);
  const Longs q = (Longs)_mm256_mul_epu32((__m256i)odd, f);
#else
  const Longs p = even * factor, q = odd * factor;
#endif
  *low = (Words)((p & 0xFFFFFFFFull) | (q << 32));
  *high = (Words)((p >> 32) | (q & 0xFFFFFFFF00000000ull));
}

// --- conversions -------------------------------------------------------------------------------

// Each lane as 32 bits. Compilers make several instructions of the plain conversions.
DSPARK_INLINE Words widen(Shorts x) {
#if defined(__AVX512F__)
  return (Words)_mm512_cvtepu16_epi32((__m256i)x);
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu16_epi32((__m128i)x);
#else
  return __builtin_convertvector(x, Words);
#endif
}
DSPARK_INLINE Words widen(Bytes x) {
#if defined(__AVX512F__)
  return (Words)_mm512_cvtepu8_epi32((__m128i)x);
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)&x));
#else
  return __builtin_convertvector(x, Words);
#endif
}
// Lanes below 2^16 as 16 bits.
DSPARK_INLINE Shorts narrow(Words x) {
#if defined(__AVX512F__)
  return (Shorts)_mm512_cvtepi32_epi16((__m512i)x);
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32((__m256i)x, (__m256i)x);
  return (Shorts)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#else
  return __builtin_convertvector(x, Shorts);
#endif
}

DSPARK_INLINE Floats load(const float* from) { return load_as<Floats>(from); }

DSPARK_INLINE Floats load(const Bf16* from) { return (Floats)(widen(load_as<Shorts>(from)) << 16); }

DSPARK_INLINE Floats load(const Fp16* from) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(load_as<__m256i>(from));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(load_as<__m128i>(from));
#else
  const Words half = widen(load_as<Shorts>(from));
  const Words magnitude = (half & 0x7FFF) << 13, sign = (half & 0x8000) << 16;
  const Words finite =
      (Words)((Floats)magnitude * 0x1p112f);  // the exponents' biases differ by 112
  return (Floats)(((half & 0x7C00) == 0x7C00 ? magnitude | 0x7F800000 : finite) | sign);
#endif
}

DSPARK_INLINE Floats load(const Fp8* from) {
  const Words byte = widen(load_as<Bytes>(from));
  const Words magnitude = (byte & 0x7F) << 20, sign = (byte & 0x80) << 24;
  const Words finite = (Words)((Floats)magnitude * 0x1p120f);
  return (Floats)(((byte & 0x7F) == 0x7F ? splat(0x7FC00000u) : finite) | sign);
}

DSPARK_INLINE void store(float* to, Floats value) { store_as(to, value); }

DSPARK_INLINE Words round_to_bf16(Floats value) {
  const Words bits = (Words)value;
  const Words rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return value == value ? rounded : splat(0x7FC0u);
}

// Lane i holds element i as bf16 in its low 16 bits.
DSPARK_INLINE Words load_bf16(const Bf16* from) { return widen(load_as<Shorts>(from)); }
DSPARK_INLINE Words load_bf16(const Fp8* from) { return round_to_bf16(load(from)); }

// Pairs of bf16 numbers: a in the low half of a lane, b in the high half.
DSPARK_INLINE Floats pack_bf16(Words a, Words b) { return (Floats)(a | b << 16); }
DSPARK_INLINE void store(Bf16* to, Floats value) { store_as(to, narrow(round_to_bf16(value))); }

DSPARK_INLINE void store(Fp16* to, Floats value) {
#if defined(__AVX512F__)
  store_as(to, _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  store_as(to, _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
#else
  const Words bits = (Words)value & 0x7FFFFFFF, sign = ((Words)value >> 16) & 0x8000;
  const Words normal = (bits - (112u << 23) + 0xFFF + ((bits >> 13) & 1)) >> 13;
  const Words tiny = (Words)((Floats)bits + 0.5f) - 0x3F000000;  // lets the adder round
  const Words large = bits > 0x7F800000 ? splat(0x7E00u) : splat(0x7C00u);
  const Words half = bits >= 0x47800000 ? large : bits < 0x38800000 ? tiny : normal;
  store_as(to, narrow(half | sign));
#endif
}

// The first `count` lanes; the others are zero and not read.
template <typename T>
DSPARK_INLINE Floats load_first(const T* from, int count) {
  T padded[kLanes] = {};
  for (int i = 0; i < count; ++i) padded[i] = from[i];
  return load(padded);
}

template <typename T>
DSPARK_INLINE void store_first(T* to, Floats value, int count) {
  T lanes[kLanes];
  store(lanes, value);
  for (int i = 0; i < count; ++i) to[i] = lanes[i];
}

// A whole vector where there are `count` >= kLanes elements, else the first lanes.
template <typename T>
DSPARK_INLINE Floats load_up_to(const T* from, int64_t count) {
  return count >= kLanes ? load(from) : load_first(from, (int)count);
}
template <typename T>
DSPARK_INLINE void store_up_to(T* to, Floats value, int64_t count) {
  if (count >= kLanes) {
    store(to, value);
  } else {
    store_first(to, value, (int)count);
  }
}

template <typename T>
DSPARK_INLINE float to_float(T value) {
  return load_first(&value, 1)[0];
}
DSPARK_INLINE float to_float(Bf16 value) {
  const uint32_t bits = (uint32_t)value.bits << 16;
  return load_as<float>(&bits);
}
#ifdef __F16C__
DSPARK_INLINE float to_float(Fp16 value) { return _cvtsh_ss(value.bits); }
#endif
DSPARK_INLINE float to_float(float value) { return value; }

// Calls f with a value of the element type that a dtype stands for.
template <typename F>
DSPARK_INLINE auto with_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kBf16:
      return f(Bf16{});
    case DType::kFp16:
      return f(Fp16{});
    default:
      return f(float{});
  }
}

}  // namespace dspark::DSPARK_ISA
