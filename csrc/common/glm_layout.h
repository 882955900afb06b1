// The memory of one request of glm_tree: what lies where, for the shape of the call.

#pragma once

#include "common/product.h"

namespace dspark {

struct GlmShape {
  int heads, candidates, rank, nodes, paths, path_length;
  int64_t vocab, table_in_stride, table_out_stride;
  float min_score;
  bool matrix_unit = false;  // the group's serves the products, see G::kMatrixUnit
  bool own_mix = false;      // then mix is in the workspace
  int levels = 1;            // and so are the rows of as many levels at once: 1 or all
};

// The tokens that may be nodes of the levels from `first` on, one row each, level by level: the
// root at the first level of all, then the candidates and the paths' tokens of the head above.
class TokenRows {
 public:
  // inverse: of candidates and paths together
  DSPARK_FORCE_INLINE constexpr TokenRows(const GlmShape& s, int first, uint32_t inverse)
      : per_level_(s.candidates + s.paths), inverse_(inverse), skipped_(all_before(first)) {}
  // Where a level's rows start; of the level behind the last one: how many rows there are.
  DSPARK_FORCE_INLINE constexpr int start(int level) const { return all_before(level) - skipped_; }
  DSPARK_FORCE_INLINE constexpr int level(int row) const {
    const int all = row + skipped_;
    return all == 0 ? 0 : 1 + quotient(all - 1, inverse_);
  }

 private:
  DSPARK_FORCE_INLINE constexpr int all_before(int level) const {
    return level == 0 ? 0 : 1 + (level - 1) * per_level_;
  }

  int per_level_;
  uint32_t inverse_;
  int skipped_;
};

// How far apart rows of a matrix unit are, so that neighbours are in different memory banks: of
// those of the tables 4 bytes are read at once, of mix 8.
DSPARK_FORCE_INLINE constexpr int raw_pitch_of(int rank) { return rank + 8; }
DSPARK_FORCE_INLINE constexpr int mix_pitch_of(int rank) {
  return rank % 32 == 0 ? rank + 16 : rank;
}

DSPARK_FORCE_INLINE constexpr int larger(int a, int b) { return a > b ? a : b; }

// Offsets in floats: the memory has to fit into a cache, or into shared memory. F: nodes, L: levels
// whose rows are there at once, T: their tokens. Rows for a matrix unit are as they are in the
// tables, a pitch apart.
struct GlmLayout {
  int mix;        // [Rp][2 Rp], transposed; the columns of b start at Rp; for a matrix unit [2R][R]
  int rows_out;   // [Rp][Cp] of the candidates, transposed and scaled; for a matrix unit [L][Cp][R]
  int rows_in;    // [F][Rp] of table_in; for a matrix unit [T][R]
  int gates;      // [F][2 Rp]; none for a matrix unit
  int even, odd;  // [F][state_pitch] states of this level and of the one above
  int keys;       // [H][Cp], -inf where a candidate is skipped
  int tails;      // [H]: log of the mass that the candidates leave to the rest of the vocabulary
  int scores;     // [F][Cp] of the children, and one per path after them
  int inputs;     // what stage_inputs() copies
  int end;
  int state_pitch;
  uint32_t inverse_candidates, inverse_tokens;  // of Cp, and of a level's tokens; see quotient()

  constexpr GlmLayout() = default;
  DSPARK_FORCE_INLINE explicit constexpr GlmLayout(const GlmShape& s) {
    const int rank = padded(s.rank), candidates = padded(s.candidates), nodes = padded(s.nodes);
    const int raw_pitch = raw_pitch_of(s.rank), of_level = s.candidates + s.paths;
    const int tokens = s.levels > 1 ? TokenRows(s, 0, 0).start(s.heads) : larger(of_level, 1);
    // as many paths, where there are no candidates
    const int children = nodes * (s.candidates > 0 ? candidates : kPitch) + kPitch;
    const int of_heads = s.heads * s.candidates, of_paths = s.paths * s.path_length;

    state_pitch = s.matrix_unit ? raw_pitch : rank;
    inverse_candidates = inverse_of(candidates);
    inverse_tokens = inverse_of(of_level);
    mix = 0;
    if (s.matrix_unit) {
      rows_out = mix + (s.own_mix ? s.rank * mix_pitch_of(s.rank) : 0);
      rows_in = rows_out + s.levels * candidates * raw_pitch / 2;
      gates = rows_in + padded(tokens * raw_pitch / 2);
      even = gates;
    } else {
      rows_out = mix + 2 * rank * rank;
      rows_in = rows_out + candidates * rank;
      gates = rows_in + nodes * rank;
      even = gates + nodes * 2 * rank;
    }
    odd = even + nodes * state_pitch;
    keys = odd + nodes * state_pitch;
    tails = keys + s.heads * candidates;
    scores = tails + padded(s.heads);
    inputs = scores + children;
    end = inputs + padded(2 * of_heads) + padded(of_heads) + padded(2 * of_paths) +
          padded(of_paths) + padded(s.heads) + padded(2 * s.heads) + padded(s.heads * 2 * s.rank) +
          padded(s.heads * s.rank);
  }
  DSPARK_FORCE_INLINE constexpr int64_t bytes() const { return int64_t{4} * end; }
};

// The same as addresses.
struct GlmWorkspace {
  float *mix, *rows_out, *rows_in, *gates, *even, *odd, *keys, *tails, *scores, *inputs;
  int state_pitch;
  uint32_t inverse_candidates, inverse_tokens;

  DSPARK_FORCE_INLINE GlmWorkspace(const GlmLayout& at, char* memory) {
    float* const start = reinterpret_cast<float*>(memory);
    mix = start + at.mix, rows_out = start + at.rows_out;
    rows_in = start + at.rows_in, gates = start + at.gates;
    even = start + at.even, odd = start + at.odd, keys = start + at.keys;
    tails = start + at.tails, scores = start + at.scores;
    inputs = start + at.inputs;
    state_pitch = at.state_pitch;
    inverse_candidates = at.inverse_candidates, inverse_tokens = at.inverse_tokens;
  }

  DSPARK_FORCE_INLINE float* states(int level) const { return level % 2 == 0 ? even : odd; }
};

}  // namespace dspark
