// Softmax over a row of logits in memory, in passes that hold nothing but a few numbers.

#pragma once

#include <math.h>

#include "common/group.h"

namespace dspark {

// Logits of one position: x / temperature; NaN counts as -inf.
template <typename T>
struct LogitsRow {
  const T* logits;
  int64_t vocab;
  float temperature;
};

// A row is cut into slices where several groups read it side by side.
constexpr int kMaxSlices = 32;
struct Slices {
  int64_t size;  // logits of all but the last; a multiple of 4, as noise comes in fours
  int count;

  // As many as can be, each a multiple of `unit`.
  static DSPARK_FORCE_INLINE Slices cut(int64_t vocab, int64_t unit) {
    const int64_t units = (vocab + unit * kMaxSlices - 1) / (unit * kMaxSlices);
    const int64_t size = unit * (units > 1 ? units : 1);
    return {size, static_cast<int>((vocab + size - 1) / size)};
  }
  template <typename T>
  DSPARK_FORCE_INLINE LogitsRow<T> of(const LogitsRow<T>& row, int slice) const {
    const int64_t first = slice * size, left = row.vocab - first;
    return {row.logits + first, left < size ? left : size, row.temperature};
  }
};

constexpr float kLowest = -87;  // whose exponential counts; those of lower numbers are 0

// p = exp(x / temperature - top) / sum; entropy = log(sum) - weighted / sum.
struct RowStats {
  float top, sum, weighted;
  DSPARK_FORCE_INLINE bool valid() const { return top > -INFINITY && top < INFINITY; }
  static DSPARK_FORCE_INLINE RowStats none() { return {-INFINITY, 0, 0}; }
};

template <class G, typename T>
DSPARK_HOST_DEVICE typename G::Vector scaled(const LogitsRow<T>& row, typename G::Vector x) {
  const typename G::Vector lowest = G::splat(-INFINITY);
  return G::select(x > lowest, x / G::splat(row.temperature), lowest);
}

template <class G, typename T>
DSPARK_HOST_DEVICE typename G::Vector load_logits(const LogitsRow<T>& row, int64_t token) {
  const int64_t left = row.vocab - token;
  if (left >= G::kWidth) return scaled<G>(row, G::load(row.logits + token));
  const int some = static_cast<int>(left);
  return G::select(G::first_lanes(some), scaled<G>(row, G::load_first(row.logits + token, some)),
                   G::splat(-INFINITY));
}

// Calls use(logits) for the Vectors of a row that a member has, in ascending order. As many as
// load_rows takes are asked for before the first is used.
template <class G, typename T, class Use>
DSPARK_HOST_DEVICE void for_logits(const G& g, const LogitsRow<T>& row, const Use& use) {
  const int64_t step = static_cast<int64_t>(g.size()) * G::kWidth;
  int64_t i = g.lane() * G::kWidth;
  for (; i + (G::kWidth - 1) * step + G::kWidth <= row.vocab; i += G::kWidth * step) {
    const T* from[G::kWidth];
    typename G::Vector x[G::kWidth];
    DSPARK_UNROLL
    for (int k = 0; k < G::kWidth; ++k) from[k] = row.logits + i + k * step;
    G::load_rows(from, 0, G::kWidth, x);
    DSPARK_UNROLL
    for (int k = 0; k < G::kWidth; ++k) use(scaled<G>(row, x[k]));
  }
  for (; i < row.vocab; i += step) use(load_logits<G>(row, i));
}

template <class G, typename T>
DSPARK_HOST_DEVICE float logit(const LogitsRow<T>& row, int64_t token) {
  const float x = G::to_float(row.logits[token]);
  return x > -INFINITY ? x / row.temperature : -INFINITY;
}

template <class G, typename T>
DSPARK_HOST_DEVICE RowStats row_stats(G& g, const LogitsRow<T>& row) {
  using V = typename G::Vector;
  V highest = G::splat(-INFINITY);
  for_logits(g, row, [&](V x) { highest = G::select(x > highest, x, highest); });
  RowStats stats{g.max(G::fold_max(highest)), 0, 0};
  if (!stats.valid()) return stats;
  const V top = G::splat(stats.top), zero = G::splat(0.0f), lowest = G::splat(kLowest);
  V sum = zero, weighted = zero;
  for_logits(g, row, [&](V x) {
    x -= top;
    const V p = G::select(x > lowest, G::exp(x), zero);
    sum += p;
    weighted += G::select(x > lowest, x * p, zero);
  });
  stats.sum = g.sum(G::fold_sum(sum));
  stats.weighted = g.sum(G::fold_sum(weighted));
  return stats;
}

// Those of a row from those of its slices, by one member.
template <class G>
DSPARK_HOST_DEVICE RowStats merge_stats(const RowStats* slices, int count) {
  RowStats stats = RowStats::none();
  DSPARK_SIDE_BY_SIDE(8)
  for (int i = 0; i < count; ++i) stats.top = fmaxf(stats.top, slices[i].top);
  DSPARK_SIDE_BY_SIDE(8)
  for (int i = 0; i < count; ++i) {
    const RowStats slice = slices[i];
    if (!stats.valid() || !slice.valid()) continue;
    const float lower = slice.top - stats.top, factor = expf(lower);
    if (!(lower > kLowest)) continue;  // 0 times what may be infinite
    stats.sum += slice.sum * factor;
    stats.weighted += (slice.weighted + slice.sum * lower) * factor;
  }
  return stats;
}

}  // namespace dspark
