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
  int length;  // tokens before the first that is none
  float temperature;
  int64_t seed, position;

  DSPARK_FORCE_INLINE ChainInputs(const ChainReject& p, int64_t b)
      : tokens(p.tokens + b * p.length),
        draft(static_cast<const T*>(p.draft) + b * p.draft_batch_stride),
        target(static_cast<const T*>(p.target) + b * p.target_batch_stride),
        draft_stride(p.draft_stride),
        target_stride(p.target_stride),
        vocab(p.vocab),
        length(0),
        temperature(p.temperature[b]),
        seed(p.seed[b]),
        position(p.position[b]) {
    while (length < p.length && tokens[length] >= 0 && tokens[length] < vocab) ++length;
  }
  DSPARK_FORCE_INLINE LogitsRow<T> target_row(int place) const {
    return {target + place * target_stride, vocab, temperature};
  }
  DSPARK_FORCE_INLINE LogitsRow<T> draft_row(int place) const {
    return {draft + place * draft_stride, vocab, temperature};
  }
};

struct Draw {
  float score;  // -inf: no token has a weight
  int64_t token;
};

// Whether u < p / q for the token of a place.
template <class G, typename T>
DSPARK_HOST_DEVICE bool accepts(const ChainInputs<T>& in, int place, const RowStats& p,
                                const RowStats& q) {
  const int64_t token = in.tokens[place];
  const float log_p = logit<G>(in.target_row(place), token) - p.top - logf(p.sum);
  const float log_q = logit<G>(in.draft_row(place), token) - q.top - logf(q.sum);
  return uniform(in.seed, in.position + place, 0, Stream::kAccept) < expf(log_p - log_q);
}

// The draw with the highest score, of equal ones that of the lowest token.
template <class G>
DSPARK_HOST_DEVICE Draw best_draw(G& g, const Draw& own) {
  const float highest = g.max(own.score);
  return {highest, g.min(own.score == highest ? own.token : INT64_MAX)};
}

// argmax over a slice of log(max(p - q, 0)) + noise at a place, or of log p + noise without q.
template <class G, typename T>
DSPARK_HOST_DEVICE Draw draw_residual(G& g, const ChainInputs<T>& in, int place, const RowStats& p,
                                      const RowStats& q, const Slices& slices, int slice) {
  using V = typename G::Vector;
  const bool subtract = q.valid();
  const LogitsRow<T> p_row = slices.of(in.target_row(place), slice);
  const LogitsRow<T> q_row = subtract ? slices.of(in.draft_row(place), slice) : p_row;
  const float p_log = p.top + logf(p.sum), q_log = q.top + logf(q.sum);
  const V zero = G::splat(0.0f);
  const int64_t first = slice * slices.size;
  Draw best{-INFINITY, INT64_MAX};
  const int64_t step = static_cast<int64_t>(g.size()) * G::kWidth;
  for (int64_t i = g.lane() * G::kWidth; p.valid() && i < p_row.vocab; i += step) {
    V weight = G::exp(load_logits<G>(p_row, i) - G::splat(p_log));
    if (subtract) weight -= G::exp(load_logits<G>(q_row, i) - G::splat(q_log));
    if (G::bits(weight > zero) == 0) continue;
    const V noise = G::gumbel(in.seed, in.position + place, first + i, Stream::kResidual);
    const V score = G::select(weight > zero, G::log(weight) + noise, G::splat(-INFINITY));
    if (G::bits(score > G::splat(best.score)) == 0) continue;
    alignas(16) float scores[G::kWidth];
    G::store(scores, score);
    for (int k = 0; k < G::kWidth; ++k) {
      if (scores[k] > best.score) best = {scores[k], first + i + k};
    }
  }
  return best_draw(g, best);
}

// The draw from p itself at a place: where p <= q everywhere, which but for rounding means p = q.
template <class G, typename T>
DSPARK_HOST_DEVICE Draw draw_target(G& g, const ChainInputs<T>& in, int place) {
  const RowStats p = row_stats(g, in.target_row(place));
  return draw_residual(g, in, place, p, RowStats::none(), Slices{in.vocab, 1}, 0);
}

// What is known before the draw: emitted[0 .. K] but for the token at `kept`, and how many.
template <class G>
DSPARK_HOST_DEVICE void write_kept(G& g, const ChainReject& p, int64_t b, int kept) {
  int64_t* emitted = p.emitted + b * (p.length + 1);
  for (int i = g.lane(); i <= p.length; i += g.size()) {
    if (i != kept) emitted[i] = i < kept ? p.tokens[b * p.length + i] : -1;
  }
  if (g.lane() == 0) p.num_emitted[b] = kept + 1;
}

// The token at `kept`; 0 where no token has a weight.
template <class G>
DSPARK_HOST_DEVICE void write_drawn(G& g, const ChainReject& p, int64_t b, int64_t kept,
                                    const Draw& drawn) {
  if (g.lane() != 0) return;
  p.emitted[b * (p.length + 1) + kept] = drawn.score > -INFINITY ? drawn.token : 0;
}

// A request by one group, which reads no row after the first rejected token's.
template <class G, typename T>
DSPARK_HOST_DEVICE void chain_reject_request(G& g, const ChainReject& p, int64_t b) {
  const ChainInputs<T> in(p, b);
  RowStats target, draft;
  int kept = 0;
  for (;; ++kept) {
    target = row_stats(g, in.target_row(kept));
    draft = RowStats::none();
    if (kept == in.length) break;
    draft = row_stats(g, in.draft_row(kept));
    if (!accepts<G>(in, kept, target, draft)) break;
  }
  Draw drawn = draw_residual(g, in, kept, target, draft, Slices{p.vocab, 1}, 0);
  if (drawn.score == -INFINITY) drawn = draw_target(g, in, kept);
  write_kept(g, p, b, kept);
  write_drawn(g, p, b, kept, drawn);
  g.sync();
}

// The same by many groups, in three phases: each may start when the one before is done.
struct SlicedChain {
  ChainReject chain;
  Slices slices;
  RowStats* stats;  // [B, 2K + 1, slices]: of the target's rows, then of the draft's
  Draw* draws;      // [B, slices], from the residual

  DSPARK_FORCE_INLINE RowStats* stats_of(int64_t b, int64_t row) const {
    return stats + (b * (2 * chain.length + 1) + row) * slices.count;
  }
  DSPARK_FORCE_INLINE Draw* draws_of(int64_t b) const { return draws + b * slices.count; }
};

constexpr int kPlaces = 32;  // looked at together

struct ChainScratch {
  RowStats target[kPlaces], draft[kPlaces];
};

// Phase one, by a group for each row and slice.
template <class G, typename T>
DSPARK_HOST_DEVICE void chain_stats(G& g, const SlicedChain& p, int64_t b, int row, int slice) {
  const ChainInputs<T> in(p.chain, b);
  const bool of_draft = row > p.chain.length;
  const int place = of_draft ? row - static_cast<int>(p.chain.length) - 1 : row;
  if (of_draft ? place >= in.length : place > in.length) return;
  const LogitsRow<T> whole = of_draft ? in.draft_row(place) : in.target_row(place);
  const RowStats stats = row_stats(g, p.slices.of(whole, slice));
  if (g.lane() == 0) p.stats_of(b, row)[slice] = stats;
}

// The first place whose token is not accepted, and the statistics there.
template <class G, typename T>
DSPARK_HOST_DEVICE int find_rejected(G& g, const SlicedChain& p, const ChainInputs<T>& in,
                                     int64_t b, ChainScratch& scratch, RowStats* target,
                                     RowStats* draft) {
  for (int base = 0;; base += kPlaces) {
    const int left = in.length + 1 - base, places = left < kPlaces ? left : kPlaces;
    for (int i = g.lane(); i < 2 * places; i += g.size()) {
      const bool of_draft = i >= places;
      const int place = of_draft ? i - places : i;
      if (of_draft && base + place == in.length) continue;
      const int64_t row = base + place + (of_draft ? p.chain.length + 1 : 0);
      (of_draft ? scratch.draft : scratch.target)[place] =
          merge_stats<G>(p.stats_of(b, row), p.slices.count);
    }
    g.sync();
    int first = kPlaces;
    for (int i = g.lane(); i < places && first == kPlaces; i += g.size()) {
      if (base + i == in.length || !accepts<G>(in, base + i, scratch.target[i], scratch.draft[i])) {
        first = i;
      }
    }
    first = g.min(first);
    if (first == kPlaces) continue;
    *target = scratch.target[first];
    *draft = base + first == in.length ? RowStats::none() : scratch.draft[first];
    return base + first;
  }
}

// Phase two, by a group for each slice; each finds the place for itself.
template <class G, typename T>
DSPARK_HOST_DEVICE void chain_draw(G& g, const SlicedChain& p, int64_t b, int slice,
                                   ChainScratch& scratch) {
  const ChainInputs<T> in(p.chain, b);
  RowStats target, draft;
  const int kept = find_rejected(g, p, in, b, scratch, &target, &draft);
  const Draw drawn = draw_residual(g, in, kept, target, draft, p.slices, slice);
  if (g.lane() == 0) p.draws_of(b)[slice] = drawn;
  if (slice == 0) write_kept(g, p.chain, b, kept);
}

// Phase three, by a group for each request.
template <class G, typename T>
DSPARK_HOST_DEVICE void chain_finish(G& g, const SlicedChain& p, int64_t b) {
  const int kept = p.chain.num_emitted[b] - 1;
  const Draw* draws = p.draws_of(b);
  Draw best{-INFINITY, INT64_MAX};
  for (int i = g.lane(); i < p.slices.count; i += g.size()) {
    if (draws[i].score > best.score) best = draws[i];  // slices ascend
  }
  best = best_draw(g, best);
  if (best.score == -INFINITY) best = draw_target(g, ChainInputs<T>(p.chain, b), kept);
  write_drawn(g, p.chain, b, kept, best);
}

}  // namespace dspark
