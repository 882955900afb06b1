// One row: the lowest kept value of logits / τ from histograms over its bits, then the Gumbel-max
// draw, with noise only where some token is kept.

#include "cpu/sample_logits.h"

#include "cpu/kernels/penalty.h"

namespace dspark::DSPARK_ISA {
namespace {

constexpr int kGroup = 4 * kLanes;  // tokens whose noise is made at once: a Philox block per lane

DSPARK_INLINE int64_t padded(int64_t vocab) { return (vocab + kGroup - 1) / kGroup * kGroup; }

// An integer which orders like the float.
DSPARK_INLINE uint32_t ordered(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The smallest of the values such that those above it weigh less than `target`; -inf if all do. The
// weights are counts where `weights` is null. `memory` holds two floats per value.
float lowest_kept(const float* values, const float* weights, int64_t count, double target,
                  float* memory) {
  constexpr int kBits = 11, kBins = 1 << kBits;
  float *kept_values = memory, *kept_weights = memory + count;
  double above = 0;
  for (int shift = 32 - kBits;; shift = shift > kBits ? shift - kBits : 0) {
    double histogram[kBins] = {};
    for (int64_t i = 0; i < count; ++i) {
      histogram[ordered(values[i]) >> shift & (kBins - 1)] += weights ? weights[i] : 1.0;
    }
    int bin = kBins - 1;
    while (bin >= 0 && (histogram[bin] == 0 || above + histogram[bin] < target)) {
      above += histogram[bin--];
    }
    if (bin < 0) return -kInfinity;
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      if ((int)(ordered(values[i]) >> shift & (kBins - 1)) != bin) continue;
      kept_values[kept] = values[i];
      if (weights) kept_weights[kept] = weights[i];
      ++kept;
    }
    values = kept_values, weights = weights ? kept_weights : nullptr, count = kept;
    if (shift == 0) return values[0];
  }
}

// The best score so far and its token in every lane.
struct Best {
  Floats score = splat(-kInfinity);
  Ints token = {};

  DSPARK_INLINE void add(Floats scores, Ints tokens, Best* best) {
    const Ints better = scores > best->score;
    best->score = select(better, scores, best->score);
    best->token = better ? tokens : best->token;
  }
  int64_t lowest() const {
    int64_t found = token[0];
    float value = score[0];
    for (int i = 1; i < kLanes; ++i) {
      if (score[i] > value || (score[i] == value && token[i] < found)) {
        found = token[i], value = score[i];
      }
    }
    return found;
  }
};

// The lowest value of scaled [vocab] that top-k, top-p and min-p keep.
float find_threshold(const SampleLogits& p, int64_t row, const float* scaled, float top,
                     float* memory) {
  float threshold = -kInfinity;
  if (p.top_k != nullptr && p.top_k[row] > 0 && p.top_k[row] < p.vocab) {
    threshold = lowest_kept(scaled, nullptr, p.vocab, p.top_k[row], memory);
  }
  if (p.top_p != nullptr && p.top_p[row] < 1) {
    float* const weights = memory + 2 * p.vocab;
    const Floats shift = splat(top > -kInfinity ? top * kLog2E : 0.0f);
    double total = 0;
    for (int64_t i = 0; i < padded(p.vocab); i += kLanes) {
      const Floats value = load(scaled + i), weight = exp2(value * kLog2E - shift);
      store(weights + i, select(value >= threshold, weight, Floats{}));
    }
    for (int64_t i = 0; i < p.vocab; ++i) total += weights[i];
    const float lowest = lowest_kept(scaled, weights, p.vocab, p.top_p[row] * total, memory);
    threshold = lowest > threshold ? lowest : threshold;
  }
  if (p.min_p != nullptr && p.min_p[row] > 0) {
    const float floor = top + __builtin_logf(p.min_p[row]);
    threshold = floor > threshold ? floor : threshold;
  }
  return threshold;
}

// The scores of one vector of columns whose tokens are listed.
DSPARK_INLINE Floats listed_scores(const NoiseKey& key, const int64_t* ids, int64_t count,
                                   Floats value) {
  uint32_t token[kLanes] = {};
  for (int l = 0; l < kLanes && l < count; ++l) token[l] = (uint32_t)ids[l];
  Words tokens, word[4];
  memcpy(&tokens, token, sizeof(tokens));
  noise_words(key, tokens >> 2, word);
  Words own = word[0];
  for (uint32_t w = 1; w < 4; ++w) own = (tokens & 3u) == w ? word[w] : own;
  return value + gumbel(own);
}

// The column of the Gumbel-max draw from values [vocab] that are at least `lowest`.
int64_t draw_column(const SampleLogits& p, int64_t row, const float* scaled, float lowest) {
  const uint64_t seed = p.seed[row], position = p.position[row];
  const NoiseKey key = {splat((uint32_t)seed), splat((uint32_t)(seed >> 32)),
                        splat((uint32_t)position), splat((uint32_t)(position >> 32))};
  const Ints lane = lane_numbers();
  Best best;
  for (int64_t i = 0; i < p.vocab; i += kGroup) {
    Floats top = load(scaled + i);
    for (int j = kLanes; j < kGroup; j += kLanes) top = max(load(scaled + i + j), top);
    if (!greater_bits(select(top >= lowest, splat(1.0f), Floats{}), Floats{})) continue;
    if (p.ids != nullptr) {
      for (int64_t j = i; j < i + kGroup; j += kLanes) {
        const Floats value = load(scaled + j);
        const Floats score = listed_scores(key, p.ids + row * p.vocab + j, p.vocab - j, value);
        Best::add(select(value >= lowest, score, splat(-kInfinity)), lane + (int32_t)j, &best);
      }
      continue;
    }
    Words word[4];
    noise_words(key, (Words)lane + (uint32_t)(i / 4), word);
    for (int w = 0; w < 4; ++w) {  // lane l has token i + 4l + w
      float lanes[kLanes];
      for (int l = 0; l < kLanes; ++l) lanes[l] = scaled[i + 4 * l + w];
      const Floats value = load(lanes), score = value + gumbel(word[w]);
      Best::add(select(value >= lowest, score, splat(-kInfinity)), lane * 4 + (int32_t)i + w,
                &best);
    }
  }
  return best.lowest();
}

template <typename T>
int64_t run_row(const SampleLogits& p, int64_t row, float* memory) {
  const T* logits = (const T*)p.logits + row * p.stride;
  const float temperature = p.temperature ? p.temperature[row] : 0.0f;
  const Floats divisor = splat(temperature > 0 ? temperature : 1.0f);
  const Ints lane = lane_numbers();
  float* const scaled = memory;
  Best best;
  for (int64_t i = 0; i < padded(p.vocab); i += kLanes) {
    const int64_t left = p.vocab - i;
    Floats value = left >= kLanes ? load(logits + i) : load_first(logits + i, left > 0 ? left : 0);
    if (p.penalty.seen != nullptr) {
      constexpr uint64_t kOwn = (uint64_t{1} << kLanes) - 1;
      uint64_t bits = seen_bits(p.penalty, row, i / 64) >> i % 64 & kOwn;
      for (; bits != 0; bits &= bits - 1) {
        const int l = __builtin_ctzll(bits);
        value[l] = penalized(p.penalty, row, value[l]);
      }
    }
    value = max(value, splat(-kInfinity)) / divisor;  // no NaN
    if (left < kLanes) value = select(lane < (int32_t)left, value, splat(-kInfinity));
    Best::add(value, lane + (int32_t)i, &best);
    store(scaled + i, value);
  }
  const int64_t highest = best.lowest();
  if (temperature <= 0) return highest;
  const float lowest = find_threshold(p, row, scaled, scaled[highest], memory + padded(p.vocab));
  return draw_column(p, row, scaled, lowest);
}

}  // namespace

int64_t sample_logits_floats(const SampleLogits& p) { return padded(p.vocab) * 4; }

int64_t sample_logits_row(const SampleLogits& p, int64_t row, float* memory) {
  const int64_t column =
      with_type(p.dtype, [&](auto type) { return run_row<decltype(type)>(p, row, memory); });
  return p.ids != nullptr ? p.ids[row * p.vocab + column] : column;
}

}  // namespace dspark::DSPARK_ISA
