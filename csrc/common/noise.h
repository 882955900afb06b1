// Counter-based noise: that of dspark_kernels/reference/noise.py. The uniform numbers are the same
// bit for bit; the Gumbel ones differ where a device's logarithm rounds differently.
//
// Philox4x32-10 (Salmon et al. 2011): key = the 64-bit seed, counter = (token / 4, position low,
// position high, stream), word token % 4 of the result.

#pragma once

#include <cmath>
#include <cstdint>

#include "common/types.h"

namespace dspark {

enum class Stream : uint32_t { kDraw = 0, kAccept = 1, kResidual = 2 };

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85;
constexpr float kLargestBelowOne = 0x1.fffffep-1f;  // 1 - 2^-24

struct Philox {
  uint32_t word[4];
};

DSPARK_FORCE_INLINE Philox philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                                      uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
    const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

// The four words for the tokens 4 * block .. 4 * block + 3.
DSPARK_FORCE_INLINE Philox noise_words(int64_t seed, int64_t position, int64_t block,
                                       Stream stream = Stream::kDraw) {
  const auto key = static_cast<uint64_t>(seed), at = static_cast<uint64_t>(position);
  return philox4x32(static_cast<uint32_t>(block), static_cast<uint32_t>(at),
                    static_cast<uint32_t>(at >> 32), static_cast<uint32_t>(stream),
                    static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32));
}

// A number inside (0, 1). The product is exact, so a fused multiply-add gives the same bits.
DSPARK_FORCE_INLINE float uniform_from_word(uint32_t word) {
  const float u = static_cast<float>(word) * 0x1p-32f + 0x1p-33f;
  return u < kLargestBelowOne ? u : kLargestBelowOne;
}

DSPARK_FORCE_INLINE float gumbel_from_word(uint32_t word) {
  return -logf(-log1pf(-uniform_from_word(word)));
}

DSPARK_FORCE_INLINE float uniform(int64_t seed, int64_t position, int64_t token,
                                  Stream stream = Stream::kDraw) {
  return uniform_from_word(noise_words(seed, position, token >> 2, stream).word[token & 3]);
}

DSPARK_FORCE_INLINE float gumbel(int64_t seed, int64_t position, int64_t token,
                                 Stream stream = Stream::kDraw) {
  return gumbel_from_word(noise_words(seed, position, token >> 2, stream).word[token & 3]);
}

}  // namespace dspark
