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

// p = exp(x / temperature - top) / sum; entropy = log(sum) - weighted / sum.
struct RowStats {
  float top, sum, weighted;
  DSPARK_FORCE_INLINE bool valid() const { return top > -INFINITY && top < INFINITY; }
};

template <class G, typename T>
DSPARK_HOST_DEVICE typename G::Vector load_logits(const LogitsRow<T>& row, int64_t token) {
  using V = typename G::Vector;
  const int64_t left = row.vocab - token;
  const V lowest = G::splat(-INFINITY);
  V x = left >= G::kWidth ? G::load(row.logits + token)
                          : G::load_first(row.logits + token, static_cast<int>(left));
  x = G::select(x > lowest, x / G::splat(row.temperature), lowest);
  return left >= G::kWidth ? x : G::select(G::first_lanes(static_cast<int>(left)), x, lowest);
}

template <class G, typename T>
DSPARK_HOST_DEVICE float logit(const LogitsRow<T>& row, int64_t token) {
  const float x = G::to_float(row.logits[token]);
  return x > -INFINITY ? x / row.temperature : -INFINITY;
}

template <class G, typename T>
DSPARK_HOST_DEVICE RowStats row_stats(G& g, const LogitsRow<T>& row) {
  using V = typename G::Vector;
  const int64_t step = static_cast<int64_t>(g.size()) * G::kWidth;
  V highest = G::splat(-INFINITY);
  for (int64_t i = g.lane() * G::kWidth; i < row.vocab; i += step) {
    const V x = load_logits<G>(row, i);
    highest = G::select(x > highest, x, highest);
  }
  RowStats stats{g.max(G::fold_max(highest)), 0, 0};
  if (!stats.valid()) return stats;
  const V top = G::splat(stats.top), zero = G::splat(0.0f), lowest = G::splat(-87.0f);
  V sum = zero, weighted = zero;
  for (int64_t i = g.lane() * G::kWidth; i < row.vocab; i += step) {
    const V x = load_logits<G>(row, i) - top;
    const V p = G::select(x > lowest, G::exp(x), zero);
    sum += p;
    weighted += G::select(x > lowest, x * p, zero);
  }
  stats.sum = g.sum(G::fold_sum(sum));
  stats.weighted = g.sum(G::fold_sum(weighted));
  return stats;
}

}  // namespace dspark
