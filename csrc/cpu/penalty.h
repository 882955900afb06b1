// A repetition penalty: the tokens before each draw, and by how much they are less likely.

#pragma once

#include <stdint.h>

namespace dspark {

struct Penalty {
  const int64_t* seen;  // [rows / rows_per_entry, words], a bit per token; null for no penalty
  int64_t words, rows_per_entry;
  const float* penalty;  // [rows]
};

}  // namespace dspark
