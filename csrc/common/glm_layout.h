// The memory of one request of glm_tree: what lies where, for the shape of the call.

#pragma once

#include "common/product.h"

namespace dspark {

struct GlmShape {
  int heads, candidates, rank, nodes, paths, path_length;
  int64_t vocab, table_in_stride, table_out_stride;
  float min_score;
  bool matrix_unit = false;  // the group's serves the product with mix, see G::kMatrixUnit
  int levels = 0;  // 1 or all: whose tokens are gated together, before it is known which become
                   // nodes; 0: a node's token is when its children are scored
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

constexpr int kRawPad = 8;  // so that the rows start in different memory banks

// Offsets in floats, as small as the liveness of the parts allows: the memory has to fit into a
// cache, or into shared memory. T: rows of tokens, L: levels prepared at once, F: nodes. Rows for a
// matrix unit are as they are in the tables.
struct GlmLayout {
  int mix;       // [Rp][2 Rp], transposed; the columns of b start at Rp; none for a matrix unit
  int rows_out;  // [L] of the candidates: [Rp][Cp], transposed and scaled; for a matrix unit
                 // [Cp][Rp + kRawPad]
  int scales;    // [L][Rp] for such rows
  int rows_in;   // [T][Rp] of table_in; for a matrix unit in the place of the first level's states,
                 // [T][Rp + kRawPad]
  int gates;  // [T][gate_pitch]: 2 Rp; then what a token keeps of its parent's state, and what it
              // adds
  int items, spare;  // what is selected from, nodes and children: in the place of rows_in and
                     // gates, where these belong to one level
  int even, odd;     // [F][state_pitch] states of this level and of the one above
  int keys;          // [L][Cp], -inf where a candidate is skipped
  int tails;         // [L]: log of the mass that the candidates leave to the rest of the vocabulary
  int scores;        // [F][Cp] of the children, and one per path after them
  int end;
  int level_floats, gate_pitch, state_pitch;    // of rows_out, of gates, of states
  uint32_t inverse_candidates, inverse_tokens;  // of Cp, and of a level's tokens; see quotient()

  constexpr GlmLayout() = default;
  DSPARK_FORCE_INLINE explicit constexpr GlmLayout(const GlmShape& s) {
    const int rank = padded(s.rank), candidates = padded(s.candidates), nodes = padded(s.nodes);
    const int levels = s.levels > 1 ? s.levels : 1, raw_pitch = rank + kRawPad;
    const int of_level = s.candidates + s.paths > 0 ? s.candidates + s.paths : 1;
    const int tokens = s.levels == 0   ? nodes
                       : s.levels == 1 ? padded(of_level)
                                       : padded(TokenRows(s, 0, 0).start(s.heads));
    // as many paths, where there are no candidates
    const int children = nodes * (s.candidates > 0 ? candidates : kPitch) + kPitch;
    level_floats = s.matrix_unit ? candidates * raw_pitch / 2 : candidates * rank;
    gate_pitch = 2 * rank + (s.matrix_unit ? kRawPad : 0);
    state_pitch = s.matrix_unit ? raw_pitch : rank;
    const int states = larger(nodes * state_pitch, s.matrix_unit ? tokens * raw_pitch / 2 : 0);
    const int lists = 2 * (nodes + children);

    inverse_candidates = inverse_of(candidates);
    inverse_tokens = inverse_of(s.candidates + s.paths);
    mix = 0;
    rows_out = mix + (s.matrix_unit ? 0 : 2 * rank * rank);
    scales = rows_out + levels * level_floats;
    rows_in = scales + (s.matrix_unit ? levels * rank : 0);
    gates = rows_in + (s.matrix_unit ? 0 : tokens * rank);
    const int behind = gates + tokens * gate_pitch;
    items = levels > 1 ? behind : rows_in;
    spare = items + lists / 2;
    even = larger(behind, items + lists);
    odd = even + states;
    keys = odd + states;
    tails = keys + levels * candidates;
    scores = tails + padded(levels);
    end = scores + children;
  }
  DSPARK_FORCE_INLINE constexpr int64_t bytes() const { return int64_t{4} * end; }

 private:
  DSPARK_FORCE_INLINE static constexpr int larger(int a, int b) { return a > b ? a : b; }
};

// The same as addresses.
struct GlmWorkspace {
  float *mix, *rows_out, *scales, *rows_in, *gates;
  int *items, *spare;
  float *even, *odd, *keys, *tails, *scores;
  int level_floats, gate_pitch, state_pitch;
  uint32_t inverse_candidates, inverse_tokens;

  DSPARK_FORCE_INLINE GlmWorkspace(const GlmLayout& at, char* memory) {
    float* const start = reinterpret_cast<float*>(memory);
    mix = start + at.mix, rows_out = start + at.rows_out, scales = start + at.scales;
    rows_in = start + at.rows_in, gates = start + at.gates;
    items = reinterpret_cast<int*>(start + at.items);
    spare = reinterpret_cast<int*>(start + at.spare);
    even = start + at.even, odd = start + at.odd, keys = start + at.keys;
    tails = start + at.tails, scores = start + at.scores;
    level_floats = at.level_floats, gate_pitch = at.gate_pitch, state_pitch = at.state_pitch;
    inverse_candidates = at.inverse_candidates, inverse_tokens = at.inverse_tokens;
  }

  DSPARK_FORCE_INLINE float* states(int level) const { return level % 2 == 0 ? even : odd; }
};

}  // namespace dspark
