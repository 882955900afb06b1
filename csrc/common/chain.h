// The p/q rule for a chain of drafted tokens, for `chain_reject`.

#pragma once

#include "common/softmax.h"
#include "common/types.h"

namespace dspark {

struct ChainReject {  // all requests
  DType dtype;
  const int64_t* tokens;
  const void *draft, *target;
  int64_t length, vocab, draft_batch_stride, draft_stride, target_batch_stride, target_stride;
  const float* temperature;
  const int64_t *seed, *position;

  int64_t* emitted;
  int32_t* num_emitted;
};

template <typename T>
struct ChainInputs {        // of one request
  const int64_t* tokens;    // [K]
  const T *draft, *target;  // [K, V], [K + 1, V]
  int64_t draft_stride, target_stride, vocab;
  int length;
  float temperature;
  int64_t seed, position;
};

// argmax of log(max(p - q, 0)) + noise, or of log p + noise if q is not valid; -1 if all weights
// are 0.
template <class G, typename T>
DSPARK_HOST_DEVICE int64_t draw_residual(G& g, const LogitsRow<T>& p_row, const RowStats& p_stats,
                                         const LogitsRow<T>& q_row, const RowStats& q_stats,
                                         int64_t seed, int64_t position) {
  using V = typename G::Vector;
  const float p_log = p_stats.top + logf(p_stats.sum), q_log = q_stats.top + logf(q_stats.sum);
  const bool subtract = q_stats.valid();
  const V zero = G::splat(0.0f);
  float best = -INFINITY;
  int64_t token = INT64_MAX;
  const int64_t step = static_cast<int64_t>(g.size()) * G::kWidth;
  for (int64_t i = g.lane() * G::kWidth; p_stats.valid() && i < p_row.vocab; i += step) {
    V weight = G::exp(load_logits<G>(p_row, i) - G::splat(p_log));
    if (subtract) weight -= G::exp(load_logits<G>(q_row, i) - G::splat(q_log));
    if (G::bits(weight > zero) == 0) continue;
    const V noise = G::gumbel(seed, position, i, Stream::kResidual);
    const V score = G::select(weight > zero, G::log(weight) + noise, G::splat(-INFINITY));
    if (G::bits(score > G::splat(best)) == 0) continue;
    alignas(16) float scores[G::kWidth];
    G::store(scores, score);
    for (int k = 0; k < G::kWidth; ++k) {
      if (scores[k] > best) {
        best = scores[k];
        token = i + k;
      }
    }
  }
  const float highest = g.max(best);
  token = g.min(best == highest ? token : INT64_MAX);
  return highest > -INFINITY ? token : -1;
}

// Writes emitted[0 .. K], -1 padded, and the number of tokens.
template <class G, typename T>
DSPARK_HOST_DEVICE void reject_chain(G& g, const ChainInputs<T>& in, int64_t* emitted,
                                     int32_t* num_emitted) {
  constexpr RowStats none{-INFINITY, 0, 0};
  int kept = 0;
  for (;; ++kept) {
    const LogitsRow<T> p_row{in.target + kept * in.target_stride, in.vocab, in.temperature};
    const RowStats p = row_stats(g, p_row);
    const int64_t token = kept < in.length ? in.tokens[kept] : -1;
    const bool drafted = token >= 0 && token < in.vocab;
    LogitsRow<T> q_row{};
    RowStats q = none;
    if (drafted) {
      q_row = {in.draft + kept * in.draft_stride, in.vocab, in.temperature};
      q = row_stats(g, q_row);
      const float log_p = logit<G>(p_row, token) - p.top - logf(p.sum);
      const float log_q = logit<G>(q_row, token) - q.top - logf(q.sum);
      const float u = uniform(in.seed, in.position + kept, 0, Stream::kAccept);
      if (u < expf(log_p - log_q)) {
        if (g.lane() == 0) emitted[kept] = token;
        continue;
      }
    }
    const int64_t position = in.position + kept;
    int64_t drawn = draw_residual(g, p_row, p, q_row, q, in.seed, position);
    if (drawn < 0) drawn = draw_residual(g, p_row, p, q_row, none, in.seed, position);
    if (g.lane() == 0) {
      emitted[kept] = drawn < 0 ? 0 : drawn;
      *num_emitted = kept + 1;
    }
    break;
  }
  for (int i = kept + 1 + g.lane(); i <= in.length; i += g.size()) emitted[i] = -1;
  g.sync();
}

template <class G, typename T>
DSPARK_HOST_DEVICE void chain_reject_request(G& g, const ChainReject& p, int64_t b) {
  const ChainInputs<T> in{p.tokens + b * p.length,
                          static_cast<const T*>(p.draft) + b * p.draft_batch_stride,
                          static_cast<const T*>(p.target) + b * p.target_batch_stride,
                          p.draft_stride,
                          p.target_stride,
                          p.vocab,
                          static_cast<int>(p.length),
                          p.temperature[b],
                          p.seed[b],
                          p.position[b]};
  reject_chain(g, in, p.emitted + b * (p.length + 1), p.num_emitted + b);
}

}  // namespace dspark
