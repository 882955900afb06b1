// The scores of the gated linear recurrence for one level of the tree, see ops/glm_tree.py.

#pragma once

#include <type_traits>

#include "common/glm_layout.h"
#include "common/score_counts.h"

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

// The inputs, of which those that are read again and again are copied to `memory`: there after
// wait_for_packets and a sync.
template <class G, typename T>
DSPARK_HOST_DEVICE GlmInputs<T> stage_inputs(G& g, const GlmShape& shape, GlmInputs<T> in,
                                             float* memory) {
  const auto stage = [&](auto*& from, int count) {
    using Number = std::remove_const_t<std::remove_reference_t<decltype(*from)>>;
    Number* const to = reinterpret_cast<Number*>(memory);
    memory += padded(count * static_cast<int>(sizeof(Number) / sizeof(float)));
    if (from == nullptr) return;
    for (int i = g.lane(); i < count; i += g.size()) g.copy_number(to + i, from + i);
    from = to;
  };
  const int of_heads = shape.heads * shape.candidates, of_paths = shape.paths * shape.path_length;
  stage(in.ids, of_heads);
  stage(in.keys, of_heads);
  stage(in.paths, of_paths);
  stage(in.path_scores, of_paths);
  stage(in.logsumexp, shape.heads);
  stage(in.calibration, 2 * shape.heads);
  stage(in.gate, shape.heads * 2 * shape.rank);
  stage(in.depth_scale, shape.heads * shape.rank);
  return in;
}

// The address of a token's row, null for one outside the vocabulary.
template <class G, typename T>
DSPARK_FORCE_INLINE const T* row_of_token(const GlmShape& shape, const T* table, int64_t stride,
                                          int64_t token) {
  return token >= 0 && token < shape.vocab ? table + token * stride : nullptr;
}

// Starts to copy the rows row(0) .. row(count - 1) for a matrix unit, zeros for null. They are
// there after wait_for_packets.
template <class G, typename T, class Row>
DSPARK_HOST_DEVICE void copy_rows(G& g, const GlmShape& shape, int count, const Row& row, T* to,
                                  int pitch) {
  auto team = g.team();
  for (int first = team.index(); first < count; first += team.size() * team.count()) {
    const int own = first + team.lane() * team.count();  // each lane finds one of the team's rows
    const T* const found = own < count ? row(own) : nullptr;
    for (int i = 0; i < team.size(); ++i) {
      const int f = first + i * team.count();
      if (f >= count) break;
      const T* from = team.of(i, found);
      for (int k = team.lane() * G::kPacket; k < shape.rank; k += team.size() * G::kPacket) {
        g.copy_packet(to + f * pitch + k, from != nullptr ? from + k : nullptr);
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

// states[f] of `count` nodes from those above: tokens [count], and parent_row: which of these.
template <class G, typename T>
DSPARK_HOST_DEVICE void update_states(G& g, const GlmShape& shape, const GlmInputs<T>& in,
                                      int level, const int64_t* tokens, const uint8_t* parent_row,
                                      int count, float* states, const GlmWorkspace& work) {
  using V = typename G::Vector;
  const int rank = shape.rank, pitch = padded(rank);
  gather_rows(
      g, shape, count,
      [&](int f) { return row_of_token<G>(shape, in.table_in, shape.table_in_stride, tokens[f]); },
      work.rows_in);
  product(g, count, rank, 2 * pitch, work.rows_in, pitch, work.mix, work.gates);
  const float* gate = in.gate + level * 2 * rank;
  const float* above = work.states(level + 1);
  auto team = g.team();
  for (int k = team.lane() * G::kWidth; k < pitch; k += team.size() * G::kWidth) {
    const int left = rank - k;  // beyond the rank rows_in is zero, and so is the state
    const V gate_a = load_some<G>(gate + k, left), gate_b = load_some<G>(gate + rank + k, left);
    DSPARK_SIDE_BY_SIDE(2)
    for (int f = team.index(); f < count; f += team.count()) {
      const float* gates = work.gates + f * 2 * pitch + k;
      const V b = G::sigmoid(gate_b + G::load_own(gates + pitch));
      V state = b * G::load_own(work.rows_in + f * pitch + k);
      if (level > 0) {
        const V a = G::sigmoid(gate_a + G::load_own(gates));
        state += a * G::load_own(above + parent_row[f] * pitch + k);
      }
      G::store(states + f * pitch + k, state);
    }
  }
  g.sync();
}

// scores[f][c] = node_scores[f] · q(c | f) in place of the products; 0 for ids out of range.
template <class G, typename T>
DSPARK_HOST_DEVICE void softmax_rows(G& g, const GlmShape& shape, const GlmInputs<T>& in, int level,
                                     const float* keys, float tail, const float* node_scores,
                                     int count, float* scores, ScoreCounts& counts) {
  using V = typename G::Vector;
  auto team = g.team();
  constexpr int kVectors = kMaxCandidates / (G::kLeastTeam * G::kWidth);  // of a member
  const int pitch = padded(shape.candidates), step = team.size() * G::kWidth;
  const int vectors = (pitch - team.lane() * G::kWidth + step - 1) / step;
  const V lowest = G::splat(-INFINITY), zero = G::splat(0.0f), one = G::splat(1.0f);
  const bool calibrated = in.calibration != nullptr;
  const V slope = G::splat(calibrated ? in.calibration[2 * level] : 1.0f);
  const V shift = G::splat(calibrated ? in.calibration[2 * level + 1] : 0.0f);
  [[maybe_unused]] const ScoreCounts::Range range = counts.range;
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
      q = q * G::splat(node_scores[f]);
      G::store(row + i * step, q);
      if constexpr (kCountScores<G>) {
        DSPARK_UNROLL
        for (const float score : q.lane) count_score(g, range, score, 1, counts);
      }
    }
  }
  g.sync();
}

// Asks for `count` numbers by the lines they lie in.
template <class G, typename T>
DSPARK_HOST_DEVICE void prefetch_numbers(G& g, const T* from, int count) {
  constexpr uintptr_t kLine = 128;
  const auto end = reinterpret_cast<uintptr_t>(from + count);
  const auto first = reinterpret_cast<uintptr_t>(from) / kLine * kLine;
  for (uintptr_t line = first + g.lane() * kLine; line < end; line += g.size() * kLine) {
    G::prefetch(reinterpret_cast<const void*>(line));
  }
}

// Asks for the rows of all candidates.
template <class G, typename T>
DSPARK_HOST_DEVICE void prefetch_rows(G& g, const GlmShape& shape, const GlmInputs<T>& in) {
  constexpr int kLine = 128 / sizeof(T);
  for (int item = g.lane(); item < shape.heads * shape.candidates; item += g.size()) {
    const int64_t id = in.ids[item];
    for (int k = 0; id >= 0 && id < shape.vocab && k < shape.rank; k += kLine) {
      G::prefetch(in.table_in + id * shape.table_in_stride + k);
      G::prefetch(in.table_out + id * shape.table_out_stride + k);
    }
  }
}

// The candidates' keys and tails of all levels.
template <class G, typename T>
DSPARK_HOST_DEVICE void prepare_levels(G& g, const GlmShape& shape, const GlmInputs<T>& in,
                                       const GlmWorkspace& work) {
  using V = typename G::Vector;
  const int pitch = padded(shape.candidates);
  auto team = g.team();
  // not the first members, which multiply next
  for (int level = team.index() ^ team.count() / 4; level < shape.heads; level += team.count()) {
    const int64_t* ids = in.ids + level * shape.candidates;
    const float* from = in.keys + level * shape.candidates;
    float* const keys = work.keys + level * pitch;
    const float logsumexp = in.logsumexp[level];
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

// work.rows_out of a level, without a matrix unit.
template <class G, typename T>
DSPARK_HOST_DEVICE void transpose_level(G& g, const GlmShape& shape, const GlmInputs<T>& in,
                                        int level, const GlmWorkspace& work) {
  const int64_t* ids = in.ids + level * shape.candidates;
  const float* scale = in.depth_scale + level * shape.rank;
  const float rate = 1.0f / in.temperature;
  transpose(
      g, 1, shape.candidates, shape.rank, padded(shape.candidates), work.rows_out,
      [&](int, int c) {
        return row_of_token<G>(shape, in.table_out, shape.table_out_stride, ids[c]);
      },
      [&](int, int k) { return scale[k] * rate; });
}

// Starts to copy for a matrix unit the rows of the levels from `first` on, as many as are there at
// once.
template <class G, typename T>
DSPARK_HOST_DEVICE void copy_levels(G& g, const GlmShape& shape, const GlmInputs<T>& in, int first,
                                    const GlmWorkspace& work) {
  const int pitch = padded(shape.candidates);
  const TokenRows rows(shape, first, work.inverse_tokens);
  const auto row_in = [&](int row) {
    const int level = rows.level(row), i = row - rows.start(level), p = i - shape.candidates;
    const bool ended = p >= 0 && level > shape.path_length;
    const int64_t* from = in.ids + (level - 1) * shape.candidates + i;
    if (p >= 0) from = in.paths + p * shape.path_length + level - 1;
    if (level == 0 || ended) from = in.root;
    const int64_t token = ended ? -1 : *from;
    return row_of_token<G>(shape, in.table_in, shape.table_in_stride, token);
  };
  const auto row_out = [&](int f) {
    const int level = quotient(f, work.inverse_candidates), c = f - level * pitch;
    const int64_t* from = in.ids + (first + level) * shape.candidates + c;
    const int64_t token = c < shape.candidates ? *from : -1;
    return row_of_token<G>(shape, in.table_out, shape.table_out_stride, token);
  };
  const int raw = raw_pitch_of(shape.rank), tokens = rows.start(first + shape.levels);
  copy_rows(g, shape, tokens, row_in, reinterpret_cast<T*>(work.rows_in), raw);
  copy_rows(g, shape, shape.levels * pitch, row_out, reinterpret_cast<T*>(work.rows_out), raw);
}

// The states of the nodes of a level, and the products of work.scores, by a matrix unit. Calls
// meanwhile() where some members have nothing else to do.
template <class G, typename T, class Meanwhile>
DSPARK_HOST_DEVICE void multiply_on_unit(G& g, const GlmShape& shape, const GlmInputs<T>& in,
                                         int level, const uint8_t* source,
                                         const uint8_t* parent_row, int count,
                                         const GlmWorkspace& work, const Meanwhile& meanwhile) {
  using V = typename G::Vector;
  const int rank = shape.rank, pitch = raw_pitch_of(rank), candidates = padded(shape.candidates);
  const bool all = shape.levels > 1;
  const T* rows_in = reinterpret_cast<const T*>(work.rows_in);
  const T* rows_out = reinterpret_cast<const T*>(work.rows_out);
  if (all) {
    rows_in += TokenRows(shape, 0, 0).start(level) * pitch;
    rows_out += level * candidates * pitch;
  }
  if (level == 0 || !all) {
    g.wait_for_packets();
    g.sync();
  }
  const float* gate = in.gate + level * 2 * rank;
  const float* above = work.states(level + 1);
  float* const states = work.states(level);
  g.paired_product(
      count, rank, [&](int f) { return rows_in + source[f] * pitch; },
      shape.own_mix ? reinterpret_cast<const T*>(work.mix) : in.mix,
      shape.own_mix ? mix_pitch_of(rank) : rank,
      [&](int f, int k, const T* x, V sums) {
        const Two<float> a = load_two(gate + k), b = load_two(gate + rank + k);
        const V ab = G::sigmoid(sums + V{a.of[0], a.of[1], b.of[0], b.of[1]});
        const Two<T> own = load_two(x + k);
        Two<float> parent{};
        if (level > 0) parent = load_two(above + parent_row[f] * pitch + k);
        return V{ab.lane[0] * parent.of[0] + ab.lane[2] * G::to_float(own.of[0]),
                 ab.lane[1] * parent.of[1] + ab.lane[3] * G::to_float(own.of[1])};
      },
      [&](int f, int k, V state) {
        store_two(states + f * pitch + k, {state.lane[0], state.lane[1]});
      });
  meanwhile();
  g.scaled_product(count, rank, candidates, states, pitch, in.depth_scale + level * rank,
                   1.0f / in.temperature, rows_out, pitch, work.scores);
  const int next = level + 1;  // whose rows may come in the place of those that are done with
  if (!all && next < shape.heads) copy_levels(g, shape, in, next, work);
}

// work.scores[f][c] = node_scores[f] · q(c | f) for the children of the nodes f of a level, first
// <= f < first + count; all nodes at once for a matrix unit. source: of each node, its token's
// place among those which may be nodes there. Calls meanwhile() once, before the last of several
// syncs.
template <class G, typename T, class Meanwhile>
DSPARK_HOST_DEVICE void score_children(G& g, const GlmShape& shape, const GlmInputs<T>& in,
                                       int level, const int64_t* tokens, const uint8_t* source,
                                       const uint8_t* parent_row, const float* node_scores,
                                       int first, int count, const GlmWorkspace& work,
                                       ScoreCounts& counts, const Meanwhile& meanwhile) {
  const int pitch = padded(shape.candidates);
  float* const scores = work.scores + first * pitch;
  if constexpr (G::template kMatrixUnit<T>) {
    if (shape.matrix_unit) {
      multiply_on_unit(g, shape, in, level, source, parent_row, count, work, meanwhile);
    }
  }
  if (!shape.matrix_unit) {
    float* const states = work.states(level) + first * work.state_pitch;
    update_states(g, shape, in, level, tokens + first, parent_row + first, count, states, work);
    meanwhile();
    product(g, count, shape.rank, pitch, states, work.state_pitch, work.rows_out, scores);
  }
  softmax_rows(g, shape, in, level, work.keys + level * pitch, work.tails[level],
               node_scores + first, count, scores, counts);
}

}  // namespace dspark
