// The scores of the gated linear recurrence for one level of the tree, see ops/glm_tree.py.

#pragma once

#include "common/glm_layout.h"

namespace dspark {

template <typename T>
struct GlmInputs {                // of one request
  const int64_t* ids;             // [H, C]
  const float *keys, *logsumexp;  // [H, C], [H]
  const float* gate;              // [H, 2R]
  const int64_t* root;            // one
  const T *table_in, *table_out;  // [V, R]
  const T* mix;                   // [2R, R]
  const float* depth_scale;       // [H, R]
  const float* calibration;       // [H, 2], slope and shift, or null
  float temperature;              // > 0
  const int64_t* paths;           // [P, Q]
  const float* path_scores;       // [P, Q]
};

// The address of a token's row, null for one outside the vocabulary.
template <class G, typename T>
DSPARK_FORCE_INLINE const T* row_of_token(const GlmShape& shape, const T* table, int64_t stride,
                                          int64_t token) {
  return token >= 0 && token < shape.vocab ? table + token * stride : nullptr;
}

// Starts to copy the rows row(0) .. row(count - 1) for a matrix unit, zeros for null. They are
// there after wait_for_packets.
template <class G, typename T, class Row>
DSPARK_HOST_DEVICE void copy_rows(G& g, const GlmShape& shape, int count, const Row& row, T* to) {
  auto team = g.team();
  for (int first = team.index(); first < count; first += team.size() * team.count()) {
    const int own = first + team.lane() * team.count();  // each lane finds one of the team's rows
    const T* const found = own < count ? row(own) : nullptr;
    for (int i = 0; i < team.size(); ++i) {
      const int f = first + i * team.count();
      if (f >= count) break;
      const T* from = team.of(i, found);
      for (int k = team.lane() * G::kPacket; k < shape.rank; k += team.size() * G::kPacket) {
        g.copy_packet(to + f * (shape.rank + kRawPad) + k, from != nullptr ? from + k : nullptr);
      }
    }
  }
}

// The rows row(0) .. row(count - 1) as floats, zeros for null.
template <class G, class Row>
DSPARK_HOST_DEVICE void gather_rows(G& g, const GlmShape& shape, int count, const Row& row,
                                    float* to) {
  auto team = g.team();
  const int pitch = padded(shape.rank);
  for (int f = team.index(); f < count; f += team.count()) {
    const auto from = row(f);
    for (int k = team.lane() * G::kWidth; k < pitch; k += team.size() * G::kWidth) {
      G::store(to + f * pitch + k, load_some<G>(from + k, from != nullptr ? shape.rank - k : 0));
    }
  }
  g.sync();
}

// work.gates of `count` tokens, whose rows are row(f); level(f): at which level token f is a node.
// raw: where the rows are being copied to for a matrix unit, null without one.
template <class G, typename T, class Row, class Level>
DSPARK_HOST_DEVICE void gate_tokens(G& g, const GlmShape& shape, const GlmInputs<T>& in, int count,
                                    const Row& row, const Level& level, T* raw,
                                    const GlmWorkspace& work) {
  using V = typename G::Vector;
  const int pitch = padded(shape.rank);
  if constexpr (G::template kMatrixUnit<T>) {
    if (raw != nullptr) {
      g.wait_for_packets();
      g.sync();
      g.matrix_product(count, shape.rank, 2 * pitch, raw, pitch + kRawPad, in.mix, work.gates,
                       work.gate_pitch);
    }
  }
  if (raw == nullptr) {
    gather_rows(g, shape, count, row, work.rows_in);
    product(g, count, shape.rank, 2 * pitch, work.rows_in, pitch, work.mix, work.gates);
  }
  auto team = g.team();
  for (int k = team.lane() * G::kWidth; k < pitch; k += team.size() * G::kWidth) {
    const int left = shape.rank - k;  // beyond the rank rows_in is zero, and so is the state
    DSPARK_SIDE_BY_SIDE(2)
    for (int f = team.index(); f < count; f += team.count()) {
      const float* gate = in.gate + level(f) * 2 * shape.rank + k;
      float* const gates = work.gates + f * work.gate_pitch + k;
      const V a = load_some<G>(gate, left) + G::load_own(gates);
      const V b = load_some<G>(gate + shape.rank, left) + G::load_own(gates + pitch);
      const V x = raw != nullptr ? G::load(raw + f * (pitch + kRawPad) + k)
                                 : G::load_own(work.rows_in + f * pitch + k);
      G::store(gates, G::sigmoid(a));
      G::store(gates + pitch, x * G::sigmoid(b));
    }
  }
  g.sync();
}

// The states of the nodes first .. first + count - 1 from their parents'. token_row(f): where the
// gates of node first + f are, parent_row: which state of the level above.
template <class G, class Row>
DSPARK_HOST_DEVICE void update_states(G& g, const GlmShape& shape, int level, const Row& token_row,
                                      const int* parent_row, int first, int count,
                                      const GlmWorkspace& work) {
  using V = typename G::Vector;
  auto team = g.team();
  const int pitch = padded(shape.rank), step = team.size() * G::kWidth;
  float* const states = work.states(level) + first * work.state_pitch;
  const float* above = work.states(level + 1);
  DSPARK_SIDE_BY_SIDE(2)
  for (int f = team.index(); f < count; f += team.count()) {
    const float* gates = work.gates + token_row(f) * work.gate_pitch;
    const float* parent = above + parent_row[f] * work.state_pitch;
    for (int k = team.lane() * G::kWidth; k < pitch; k += step) {
      V state = G::load_own(gates + pitch + k);
      if (level > 0) state += G::load_own(gates + k) * G::load_own(parent + k);
      G::store(states + f * work.state_pitch + k, state);
    }
  }
  g.sync();
}

// scores[f][c] = node_scores[f] · q(c | f) in place of the products; 0 for ids out of range.
template <class G, typename T>
DSPARK_HOST_DEVICE void softmax_rows(G& g, const GlmShape& shape, const GlmInputs<T>& in, int level,
                                     const float* keys, float tail, const float* node_scores,
                                     int count, float* scores) {
  using V = typename G::Vector;
  auto team = g.team();
  constexpr int kVectors = kMaxCandidates / (G::kLeastTeam * G::kWidth);  // of a member
  const int pitch = padded(shape.candidates), step = team.size() * G::kWidth;
  const int vectors = (pitch - team.lane() * G::kWidth + step - 1) / step;
  const V lowest = G::splat(-INFINITY), zero = G::splat(0.0f), one = G::splat(1.0f);
  const bool calibrated = in.calibration != nullptr;
  const V slope = G::splat(calibrated ? in.calibration[2 * level] : 1.0f);
  const V shift = G::splat(calibrated ? in.calibration[2 * level + 1] : 0.0f);
  for (int f = team.index(); f < count; f += team.count()) {
    float* const row = scores + f * pitch + team.lane() * G::kWidth;
    const float* key = keys + team.lane() * G::kWidth;
    V z[kVectors], highest = lowest;
    DSPARK_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      z[i] = lowest;
      if (i < vectors) z[i] = G::load_own(row + i * step) + G::load_own(key + i * step);
      z[i] = G::select(z[i] > lowest, z[i], lowest);
      highest = G::select(z[i] > highest, z[i], highest);
    }
    const float top = team.max(fmaxf(G::fold_max(highest), tail));
    V sum = zero;
    DSPARK_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      if (i < vectors) sum += G::exp(z[i] - G::splat(top));
    }
    const V total = G::splat(team.sum(G::fold_sum(sum))) + G::exp(G::splat(tail - top));
    const bool finite = top > -INFINITY && top < INFINITY;
    const V log_total = finite ? G::splat(top) + G::log(total) : G::splat(INFINITY);
    DSPARK_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      if (i >= vectors) break;
      const V x = (z[i] - log_total) * slope + shift;
      V q = G::select(x > G::splat(-87.0f), G::exp(x), zero);
      q = G::select(x < zero, q, G::select(x > lowest, one, zero));
      G::store(row + i * step, q * G::splat(node_scores[f]));
    }
  }
  g.sync();
}

// Asks for `count` numbers, none where `from` is null, by the lines they lie in.
template <class G, typename T>
DSPARK_HOST_DEVICE void prefetch_numbers(G& g, const T* from, int count) {
  constexpr uintptr_t kLine = 128;
  if (from == nullptr) return;
  const auto end = reinterpret_cast<uintptr_t>(from + count);
  const auto first = reinterpret_cast<uintptr_t>(from) / kLine * kLine;
  for (uintptr_t line = first + g.lane() * kLine; line < end; line += g.size() * kLine) {
    G::prefetch(reinterpret_cast<const void*>(line));
  }
}

// Asks for what the levels read: their own numbers and, where they are not read at once, the rows
// of all candidates.
template <class G, typename T>
DSPARK_HOST_DEVICE void prefetch_levels(G& g, const GlmShape& shape, const GlmInputs<T>& in) {
  const int candidates = shape.heads * shape.candidates, tokens = shape.paths * shape.path_length;
  prefetch_numbers(g, in.gate, shape.heads * 2 * shape.rank);
  prefetch_numbers(g, in.depth_scale, shape.heads * shape.rank);
  prefetch_numbers(g, in.keys, candidates);
  prefetch_numbers(g, in.logsumexp, shape.heads);
  prefetch_numbers(g, in.calibration, shape.heads * 2);
  prefetch_numbers(g, in.paths, tokens);
  prefetch_numbers(g, in.path_scores, tokens);
  prefetch_numbers(g, in.mix, 2 * shape.rank * shape.rank);
  if (shape.levels > 1) return;
  constexpr int kLine = 128 / sizeof(T);
  for (int item = g.lane(); item < candidates; item += g.size()) {
    const int64_t id = in.ids[item];
    for (int k = 0; id >= 0 && id < shape.vocab && k < shape.rank; k += kLine) {
      G::prefetch(in.table_in + id * shape.table_in_stride + k);
      G::prefetch(in.table_out + id * shape.table_out_stride + k);
    }
  }
}

// The candidates' keys and tails for the levels first .. first + count - 1.
template <class G, typename T>
DSPARK_HOST_DEVICE void prepare_keys(G& g, const GlmShape& shape, const GlmInputs<T>& in, int first,
                                     int count, const GlmWorkspace& work) {
  using V = typename G::Vector;
  const int pitch = padded(shape.candidates);
  auto team = g.team();
  for (int level = team.index(); level < count; level += team.count()) {
    const int64_t* ids = in.ids + (first + level) * shape.candidates;
    const float* from = in.keys + (first + level) * shape.candidates;
    float* const keys = work.keys + level * pitch;
    const float logsumexp = in.logsumexp[first + level];
    V sum = G::splat(0.0f);
    for (int c = team.lane() * G::kWidth; c < pitch; c += team.size() * G::kWidth) {
      int64_t id[G::kWidth];
      float key[G::kWidth];
      DSPARK_UNROLL
      for (int i = 0; i < G::kWidth; ++i) {
        const bool there = c + i < shape.candidates;
        id[i] = there ? ids[c + i] : -1;
        key[i] = there ? from[c + i] : -INFINITY;
      }
      DSPARK_UNROLL
      for (int i = 0; i < G::kWidth; ++i) {  // NaN is not above
        const bool used = id[i] >= 0 && id[i] < shape.vocab && key[i] > -INFINITY;
        keys[c + i] = used ? key[i] : -INFINITY;
      }
      sum += G::exp(G::load_own(keys + c) - G::splat(logsumexp));
    }
    const float share = team.sum(G::fold_sum(sum));
    const bool rest = logsumexp > -INFINITY && share < 1;
    if (team.lane() == 0) work.tails[level] = rest ? logsumexp + logf(1 - share) : -INFINITY;
  }
}

// What the nodes of the levels from `first` on share, as many levels as are prepared at once.
template <class G, typename T>
DSPARK_HOST_DEVICE void prepare_levels(G& g, const GlmShape& shape, const GlmInputs<T>& in,
                                       int first, const GlmWorkspace& work) {
  const int count = shape.levels > 1 ? shape.levels : 1;
  const float rate = 1.0f / in.temperature;
  const auto out = [&](int level, int c) {
    const int64_t id = in.ids[(first + level) * shape.candidates + c];
    return row_of_token<G>(shape, in.table_out, shape.table_out_stride, id);
  };
  const auto scale = [&](int level, int k) {
    return in.depth_scale[(first + level) * shape.rank + k] * rate;
  };
  const TokenRows rows(shape, first, work.inverse_tokens);
  const auto level_of = [&](int row) { return rows.level(row); };
  const auto row_in = [&](int row) {
    const int level = rows.level(row), i = row - rows.start(level), p = i - shape.candidates;
    const bool ended = p >= 0 && level > shape.path_length;
    const int64_t* from = in.ids + (level - 1) * shape.candidates + i;
    if (p >= 0) from = in.paths + p * shape.path_length + level - 1;
    if (level == 0 || ended) from = in.root;
    const int64_t token = ended ? -1 : *from;
    return row_of_token<G>(shape, in.table_in, shape.table_in_stride, token);
  };
  T* const raw = shape.matrix_unit ? reinterpret_cast<T*>(work.states(first)) : nullptr;
  if constexpr (G::template kMatrixUnit<T>) {
    if (shape.matrix_unit) {
      const int pitch = padded(shape.candidates);
      const auto row_out = [&](int f) {
        const int level = quotient(f, work.inverse_candidates), c = f - level * pitch;
        return c < shape.candidates ? out(level, c) : nullptr;
      };
      copy_rows(g, shape, rows.start(first + count), row_in, raw);
      copy_rows(g, shape, count * pitch, row_out, reinterpret_cast<T*>(work.rows_out));
      for (int k = g.lane(); k < count * shape.rank; k += g.size()) work.scales[k] = scale(0, k);
    }
  }
  prepare_keys(g, shape, in, first, count, work);
  if (!shape.matrix_unit) {
    transpose(g, count, shape.candidates, shape.rank, padded(shape.candidates), work.rows_out, out,
              scale);
  }
  if constexpr (G::kExpand >= kMaxNodes) {
    gate_tokens(g, shape, in, rows.start(first + count), row_in, level_of, raw, work);
  }
}

// work.scores[f][c] for the children of the nodes f of a level, first <= f < first + count. source:
// of each node, its token's place among those which may be nodes there.
template <class G, typename T>
DSPARK_HOST_DEVICE void score_children(G& g, const GlmShape& shape, const GlmInputs<T>& in,
                                       int level, const int64_t* tokens, const int* source,
                                       const int* parent_row, const float* node_scores, int first,
                                       int count, const GlmWorkspace& work) {
  const int candidates = padded(shape.candidates);
  const int prepared = shape.levels > 1 ? level : 0;
  if constexpr (G::kExpand < kMaxNodes) {
    const auto row = [&](int f) {
      return row_of_token<G>(shape, in.table_in, shape.table_in_stride, tokens[first + f]);
    };
    const auto same_level = [&](int) { return level; };
    gate_tokens(g, shape, in, count, row, same_level, static_cast<T*>(nullptr), work);
  }
  const int rows = shape.levels > 1 ? TokenRows(shape, 0, 0).start(level) : 0;
  const auto token_row = [&](int f) {
    return G::kExpand < kMaxNodes ? f : rows + source[first + f];
  };
  update_states(g, shape, level, token_row, parent_row + first, first, count, work);
  const float* states = work.states(level) + first * work.state_pitch;
  const float* rows_out = work.rows_out + prepared * work.level_floats;
  float* const scores = work.scores + first * candidates;
  if constexpr (G::template kMatrixUnit<T>) {
    if (shape.matrix_unit) {
      g.scaled_product(count, shape.rank, candidates, states, work.state_pitch,
                       work.scales + prepared * shape.rank, reinterpret_cast<const T*>(rows_out),
                       shape.rank + kRawPad, scores);
    }
  }
  if (!shape.matrix_unit) {
    product(g, count, shape.rank, candidates, states, work.state_pitch, rows_out, scores);
  }
  softmax_rows(g, shape, in, level, work.keys + prepared * candidates, work.tails[prepared],
               node_scores + first, count, scores);
}

}  // namespace dspark
