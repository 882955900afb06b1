// The scores of the gated linear recurrence for one level of the tree, see ops/glm_tree.py. Its
// matrices are as in product.h.

#pragma once

#include "common/product.h"

namespace dspark {

struct GlmShape {
  int heads, candidates, rank, nodes, paths, path_length;
  int64_t vocab, table_in_stride, table_out_stride;
  float min_score;
  bool matrix_unit = false;  // the group's serves the product with mix, see G::kMatrixUnit
};

template <typename T>
struct GlmInputs {                // of one request
  const int64_t* ids;             // [H, C]
  const float *keys, *logsumexp;  // [H, C], [H]
  const float* gate;              // [H, 2R]
  int64_t root;
  const T *table_in, *table_out;  // [V, R]
  const T* mix;                   // [2R, R]
  const float* depth_scale;       // [H, R]
  const float* calibration;       // [H, 2], slope and shift, or null
  float temperature;              // > 0
  const int64_t* paths;           // [P, Q]
  const float* path_scores;       // [P, Q]
};

constexpr int kRawPad = 8;  // so that the rows start in different memory banks

// Memory of one request outside the scratch struct, as small as the liveness of its parts allows:
// it has to fit into a cache, or into shared memory.
struct GlmWorkspace {
  float* mix;       // [Rp][2 Rp], transposed; the columns of b start at Rp; none for a matrix unit
  float* rows_out;  // [Rp][Cp], transposed rows of table_out
  float* rows_in;   // [F][Rp] rows of table_in, then the scaled states
  float* gates;     // [F][2 Rp]
  int *items,
      *spare;  // what is selected from, nodes and children: in the place of rows_in and gates
  float *even, *odd;  // [F][Rp] states of this level and of the one above
  float* keys;        // [Cp] of the level, -inf where a candidate is skipped
  float* scores;      // [F][Cp] of the children, and one per path after them

  static DSPARK_FORCE_INLINE constexpr int64_t mix_floats(const GlmShape& s) {
    return s.matrix_unit ? 0 : int64_t{2} * padded(s.rank) * padded(s.rank);
  }
  static DSPARK_FORCE_INLINE constexpr int64_t children(const GlmShape& s) {
    const int candidates = s.candidates > 0 ? padded(s.candidates) : kPitch;  // or as many paths
    return int64_t{padded(s.nodes)} * candidates + kPitch;
  }
  static DSPARK_FORCE_INLINE constexpr int64_t shared_floats(const GlmShape& s) {
    const int64_t rows = int64_t{3} * padded(s.nodes) * padded(s.rank);
    const int64_t lists = 2 * (padded(s.nodes) + children(s));
    return rows > lists ? rows : lists;
  }

  static DSPARK_FORCE_INLINE constexpr int64_t bytes(const GlmShape& s) {
    const int64_t rank = padded(s.rank), candidates = padded(s.candidates), nodes = padded(s.nodes);
    return 4 * (mix_floats(s) + rank * candidates + shared_floats(s) + 2 * nodes * rank +
                candidates + children(s));
  }

  DSPARK_FORCE_INLINE GlmWorkspace(const GlmShape& s, char* memory) {
    const int64_t rank = padded(s.rank), candidates = padded(s.candidates), nodes = padded(s.nodes);
    mix = reinterpret_cast<float*>(memory);
    rows_out = mix + mix_floats(s);
    rows_in = rows_out + rank * candidates;
    gates = rows_in + nodes * rank;
    items = reinterpret_cast<int*>(rows_in);
    spare = items + nodes + children(s);
    even = rows_in + shared_floats(s);
    odd = even + nodes * rank;
    keys = odd + nodes * rank;
    scores = keys + candidates;
  }

  DSPARK_FORCE_INLINE float* states(int level) const { return level % 2 == 0 ? even : odd; }
};

// The rows of table_in of `count` tokens, as float; zeros for tokens outside the vocabulary. raw:
// null, or where they go as they are, [F][Rp + kRawPad], for a matrix unit.
template <class G, typename T>
DSPARK_HOST_DEVICE void gather_rows(G& g, const GlmShape& shape, const T* table,
                                    const int64_t* tokens, int count, float* to, T* raw) {
  auto team = g.team();
  const int pitch = padded(shape.rank), step = team.size() * G::kWidth;
  for (int f = team.index(); f < count; f += team.count()) {
    const bool known = tokens[f] >= 0 && tokens[f] < shape.vocab;
    const T* from = table + (known ? tokens[f] * shape.table_in_stride : 0);
    for (int k = team.lane() * G::kWidth; k < pitch; k += step) {
      float* const row = to + f * pitch + k;
      if constexpr (G::template kMatrixUnit<T>) {
        if (raw != nullptr) {  // the rank is a multiple of 16, there is no padding
          G::store(row, G::copy(raw + f * (pitch + kRawPad) + k, known ? from + k : nullptr));
          continue;
        }
      }
      G::store(row, load_some<G>(from + k, known ? shape.rank - k : 0));
    }
  }
  g.sync();
}

// The states of the nodes first .. first + count - 1 from their parents', and in rows_in the states
// scaled for the product with the candidates' rows. parent_row: which state of the level above.
template <class G, typename T>
DSPARK_HOST_DEVICE void update_states(G& g, const GlmShape& shape, const GlmInputs<T>& in,
                                      int level, const int* parent_row, int first, int count,
                                      const GlmWorkspace& work) {
  using V = typename G::Vector;
  auto team = g.team();
  const int pitch = padded(shape.rank), step = team.size() * G::kWidth;
  const float *gate = in.gate + level * 2 * shape.rank,
              *scale = in.depth_scale + level * shape.rank;
  float* const states = work.states(level) + first * pitch;
  const float* above = work.states(level + 1);
  const V one = G::splat(1.0f), rate = G::splat(1.0f / in.temperature);
  for (int k = team.lane() * G::kWidth; k < pitch; k += step) {
    const int left = shape.rank - k;  // beyond the rank rows_in is zero, and so is the state
    const V gate_a = load_some<G>(gate + k, left);
    const V gate_b = load_some<G>(gate + shape.rank + k, left);
    const V factor = load_some<G>(scale + k, left) * rate;
    for (int f = team.index(); f < count; f += team.count()) {
      const float* mixed = work.gates + f * 2 * pitch + k;
      float* const row = work.rows_in + f * pitch + k;
      const V a = gate_a + G::load_own(mixed), b = gate_b + G::load_own(mixed + pitch);
      V state = G::load_own(row) / (one + G::exp(-b));
      if (level > 0) state += G::load_own(above + parent_row[f] * pitch + k) / (one + G::exp(-a));
      G::store(states + f * pitch + k, state);
      G::store(row, factor * state);
    }
  }
  g.sync();
}

// scores[f][c] = node_scores[f] · q(c | f) in place of the products; 0 for ids out of range.
template <class G, typename T>
DSPARK_HOST_DEVICE void softmax_rows(G& g, const GlmShape& shape, const GlmInputs<T>& in, int level,
                                     const float* node_scores, int count, const GlmWorkspace& work,
                                     float* scores) {
  using V = typename G::Vector;
  auto team = g.team();
  const int pitch = padded(shape.candidates), step = team.size() * G::kWidth;
  const V lowest = G::splat(-INFINITY), zero = G::splat(0.0f), one = G::splat(1.0f);
  // the tail: log of the mass that the candidates leave to the rest of the vocabulary
  const float logsumexp = in.logsumexp[level];
  V sum = zero;
  for (int c = team.lane() * G::kWidth; c < pitch; c += step) {
    sum += G::exp(G::load_own(work.keys + c) - G::splat(logsumexp));
  }
  const float share = team.sum(G::fold_sum(sum));
  const float tail = logsumexp > -INFINITY && share < 1 ? logsumexp + logf(1 - share) : -INFINITY;

  const bool calibrated = in.calibration != nullptr;
  const V slope = G::splat(calibrated ? in.calibration[2 * level] : 1.0f);
  const V shift = G::splat(calibrated ? in.calibration[2 * level + 1] : 0.0f);
  for (int f = team.index(); f < count; f += team.count()) {
    float* row = scores + f * pitch;
    V highest = lowest;
    for (int c = team.lane() * G::kWidth; c < pitch; c += step) {
      V z = G::load_own(row + c) + G::load_own(work.keys + c);
      z = G::select(z > lowest, z, lowest);
      G::store(row + c, z);
      highest = G::select(z > highest, z, highest);
    }
    const float top = team.max(fmaxf(G::fold_max(highest), tail));
    V sum = zero;
    for (int c = team.lane() * G::kWidth; c < pitch; c += step) {
      sum += G::exp(G::load_own(row + c) - G::splat(top));
    }
    const V total = G::splat(team.sum(G::fold_sum(sum))) + G::exp(G::splat(tail - top));
    const bool finite = top > -INFINITY && top < INFINITY;
    const V log_total = finite ? G::splat(top) + G::log(total) : G::splat(INFINITY);
    for (int c = team.lane() * G::kWidth; c < pitch; c += step) {
      const V x = (G::load_own(row + c) - log_total) * slope + shift;
      V q = G::select(x > G::splat(-87.0f), G::exp(x), zero);
      q = G::select(x < zero, q, G::select(x > lowest, one, zero));
      G::store(row + c, q * G::splat(node_scores[f]));
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

// Asks for what the levels read: their own numbers, then the rows of all candidates.
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
  constexpr int kLine = 128 / sizeof(T);
  for (int item = g.lane(); item < candidates; item += g.size()) {
    const int64_t id = in.ids[item];
    for (int k = 0; id >= 0 && id < shape.vocab && k < shape.rank; k += kLine) {
      G::prefetch(in.table_in + id * shape.table_in_stride + k);
      G::prefetch(in.table_out + id * shape.table_out_stride + k);
    }
  }
}

// What the nodes of a level share: the candidates' rows and keys.
template <class G, typename T>
DSPARK_HOST_DEVICE void prepare_level(G& g, const GlmShape& shape, const GlmInputs<T>& in,
                                      int level, const GlmWorkspace& work) {
  const int pitch = padded(shape.candidates);
  const int64_t* ids = in.ids + level * shape.candidates;
  const float* keys = in.keys + level * shape.candidates;
  for (int c = g.lane(); c < pitch; c += g.size()) {
    const bool known = c < shape.candidates && ids[c] >= 0 && ids[c] < shape.vocab;
    work.keys[c] = known && keys[c] > -INFINITY ? keys[c] : -INFINITY;  // NaN is not above
  }
  transpose(g, shape.candidates, shape.rank, pitch, work.rows_out, [&](int c) {
    const bool known = ids[c] >= 0 && ids[c] < shape.vocab;
    return known ? in.table_out + ids[c] * shape.table_out_stride : nullptr;
  });
}

// work.scores[f][c] for the children of the nodes f of a level, first <= f < first + count.
template <class G, typename T>
DSPARK_HOST_DEVICE void score_children(G& g, const GlmShape& shape, const GlmInputs<T>& in,
                                       int level, const int64_t* tokens, const int* parent_row,
                                       const float* node_scores, int first, int count,
                                       const GlmWorkspace& work) {
  const int rank = padded(shape.rank), candidates = padded(shape.candidates);
  float* const scores = work.scores + first * candidates;
  // where the states of this level come later
  T* const raw = shape.matrix_unit ? reinterpret_cast<T*>(work.states(level)) : nullptr;
  gather_rows(g, shape, in.table_in, tokens + first, count, work.rows_in, raw);
  if constexpr (G::template kMatrixUnit<T>) {
    if (shape.matrix_unit) {
      static_assert(G::kExpand >= kMaxNodes, "a level at once");
      g.matrix_product(count, shape.rank, 2 * rank, raw, rank + kRawPad, in.mix, work.gates);
    }
  }
  if (!shape.matrix_unit) {
    product(g, count, shape.rank, 2 * rank, work.rows_in, rank, work.mix, work.gates);
  }
  update_states(g, shape, in, level, parent_row + first, first, count, work);
  product(g, count, shape.rank, candidates, work.rows_in, rank, work.rows_out, scores);
  softmax_rows(g, shape, in, level, node_scores + first, count, work, scores);
}

}  // namespace dspark
