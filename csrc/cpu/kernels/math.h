// exp, log and the noise, lane by lane.

#pragma once

#include "common/noise.h"
#include "cpu/kernels/simd.h"

namespace dspark::DSPARK_ISA {

constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // their sum is ln 2
constexpr float kLog2E = 1.44269504f;

constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer, found in the low bits

// e^x; 0 below -87.3, infinity above 88.7. The polynomial is that of Cephes' expf.
DSPARK_INLINE Floats exp(Floats x) {
  const Floats shifted = x * kLog2E + kRound;
  const Floats n = shifted - kRound;
  const Floats r = (x - n * kLn2High) - n * kLn2Low;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Floats scaled = (Floats)((Words)p + ((Words)shifted << 23));
  return select(x > 88.72f, splat(kInfinity), select(x < -87.3f, Floats{}, scaled));
}

// 2^x for x <= 0; 0 below -126. The polynomial is that of Cephes' exp2f.
DSPARK_INLINE Floats exp2(Floats x) {
  const Floats shifted = x + kRound;
  const Floats r = x - (shifted - kRound);
  Floats p = r * 1.535336188e-4f + 1.339887440e-3f;
  p = p * r + 9.618437357e-3f;
  p = p * r + 5.550332471e-2f;
  p = p * r + 2.402264791e-1f;
  p = p * r + 6.931472028e-1f;
  p = p * r + 1.0f;
  const Floats scaled = (Floats)((Words)p + ((Words)shifted << 23));
  return select(x < -126.0f, Floats{}, scaled);
}

// x · sigmoid(x), with the exponential of -|x| so that it cannot overflow
DSPARK_INLINE Floats silu(Floats x) {
  const Ints negative = x < 0.0f;
  const Floats t = exp2(select(negative, x, -x) * kLog2E);
  return x * select(negative, t, splat(1.0f)) / (1.0f + t);
}

// ln x of positive normal numbers, with the polynomial of Cephes' logf.
DSPARK_INLINE Floats log(Floats x) {
  // x = 2^n · m with m in [sqrt(1/2), sqrt(2))
  constexpr uint32_t kSqrtHalf = 0x3F3504F3;
  const Words bits = (Words)x - kSqrtHalf;
  const Floats n = __builtin_convertvector((Ints)bits >> 23, Floats);
  const Floats z = (Floats)((bits & 0x7FFFFF) + kSqrtHalf) - 1.0f;
  Floats p = z * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * z + 1.1676998740e-1f;
  p = p * z - 1.2420140846e-1f;
  p = p * z + 1.4249322787e-1f;
  p = p * z - 1.6668057665e-1f;
  p = p * z + 2.0000714765e-1f;
  p = p * z - 2.4999993993e-1f;
  p = p * z + 3.3333331174e-1f;
  const Floats square = z * z;
  const Floats tail = p * square * z + n * kLn2Low - 0.5f * square;
  return n * kLn2High + (z + tail);
}

struct NoiseKey {
  Words seed_low, seed_high, position_low, position_high;
};

// Philox4x32-10 for the tokens 4 · block .. 4 · block + 3 of every lane, see common/noise.h.
DSPARK_INLINE void noise_words(const NoiseKey& key, Words block, Words word[4]) {
  Words c0 = block, c1 = key.position_low, c2 = key.position_high, c3 = {};
  Words k0 = key.seed_low, k1 = key.seed_high;
  for (int round = 0; round < 10; ++round) {
    Words high0, low0, high1, low1;
    multiply_wide(kPhiloxMultiplier0, c0, &high0, &low0);
    multiply_wide(kPhiloxMultiplier1, c2, &high1, &low1);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  word[0] = c0, word[1] = c1, word[2] = c2, word[3] = c3;
}

DSPARK_INLINE Floats gumbel(Words word) {
  const Floats uniform = __builtin_convertvector(word, Floats) * 0x1p-32f + 0x1p-33f;
  const Floats u = select(uniform < kLargestBelowOne, uniform, splat(kLargestBelowOne));
  const Floats w = 1.0f - u;  // rounded; the second term of -log1p(-u) makes up for that
  return -log((u - (1.0f - w)) / w - log(w));
}

}  // namespace dspark::DSPARK_ISA
