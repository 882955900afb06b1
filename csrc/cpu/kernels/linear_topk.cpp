// One pass over a task's rows of the weight: scores of a tile, then its logsumexp and the k best of
// every row of x, with rows of x across the lanes.

#include "cpu/linear_topk.h"

#include "cpu/kernels/linear.h"
#include "cpu/kernels/penalty.h"

namespace dspark::DSPARK_ISA {
namespace {

// Inserts a score into the descending list of one row; returns the list's new last key. Columns
// come in ascending order, so equal keys stay behind those already there.
float insert(float* keys, int32_t* columns, int k, float key, int32_t column) {
  int i = k - 1;
  for (; i > 0 && keys[i - 1] < key; --i) {
    keys[i] = keys[i - 1];
    columns[i] = columns[i - 1];
  }
  keys[i] = key;
  columns[i] = column;
  return keys[k - 1];
}

// The parameters of the noise for one vector of rows.
struct Noise {
  Floats temperature;
  Ints active;
  NoiseKey key;

  Noise(const LinearTopk& p, int64_t first_row) {
    float t[kLanes] = {};
    uint64_t seed[kLanes] = {}, position[kLanes] = {};
    for (int i = 0; i < kLanes && first_row + i < p.rows; ++i) {
      t[i] = p.temperature[first_row + i];
      seed[i] = p.seed[first_row + i];
      position[i] = p.position[first_row + i];
    }
    temperature = load(t);
    active = temperature > 0.0f;
    temperature = select(active, temperature, splat(1.0f));
    for (int i = 0; i < kLanes; ++i) {
      key.seed_low[i] = (uint32_t)seed[i];
      key.seed_high[i] = (uint32_t)(seed[i] >> 32);
      key.position_low[i] = (uint32_t)position[i];
      key.position_high[i] = (uint32_t)(position[i] >> 32);
    }
  }
};

DSPARK_INLINE int64_t token_of(const LinearTopk& p, int64_t column) {
  return p.id_map ? p.id_map[column] : column + p.vocab_offset;
}

// Makes the tokens seen less likely, in one vector of rows.
void penalize(const LinearTopk& p, int64_t first_row, int64_t column, int count, float* c,
              int c_stride) {
  for (int v = 0; v < count; ++v) {
    const int64_t token = token_of(p, column + v), word = token >> 6;
    const uint64_t bit = uint64_t{1} << (token & 63);
    if (word < 0 || word >= p.penalty.words || (p.any_seen[word] & bit) == 0) continue;
    for (int i = 0; i < kLanes && first_row + i < p.rows; ++i) {
      float& logit = c[v * c_stride + i];
      const int64_t row = first_row + i;
      if (seen_bits(p.penalty, row, word) & bit) logit = penalized(p.penalty, row, logit);
    }
  }
}

// The scores of one vector of rows, in place: bias, penalty, temperature, noise; NaN becomes -inf.
template <typename T>
DSPARK_INLINE void finish_scores(const LinearTopk& p, int64_t first_row, int64_t column, int count,
                                 float* c, int c_stride) {
  const T* bias = (const T*)p.bias;
  if (bias != nullptr) {
    for (int v = 0; v < count; ++v) {
      store(c + v * c_stride, load(c + v * c_stride) + to_float(bias[column + v]));
    }
  }
  if (p.penalty.seen != nullptr) penalize(p, first_row, column, count, c, c_stride);
  if (p.temperature == nullptr) return;
  const Noise noise(p, first_row);
  if (!greater_bits(select(noise.active, splat(1.0f), splat(0.0f)), splat(0.0f))) return;
  Words word[4];
  int64_t block = INT64_MIN;
  for (int v = 0; v < count; ++v) {
    const int64_t id = token_of(p, column + v);
    if (id >> 2 != block) {
      block = id >> 2;
      noise_words(noise.key, splat((uint32_t)block), word);
    }
    const Floats score = load(c + v * c_stride);
    const Floats noisy = score / noise.temperature + gumbel(word[id & 3]);
    store(c + v * c_stride, select(noise.active, noisy, score));
  }
}

template <typename T>
void run_task(const LinearTopk& p, int64_t worker, int64_t task) {
  const typename DotOf<T>::type::Unit unit;
  const auto layout = RowLayout::of<T>(p.rows, p.depth);
  const int tile = tile_rows<T>(layout);
  float* const maximum = p.maximum + task * p.padded_rows;
  float* const sum = p.sum + task * p.padded_rows;
  float* const threshold = p.threshold + worker * p.padded_rows;
  for (int64_t i = 0; i < p.padded_rows; ++i) maximum[i] = -kInfinity, sum[i] = 0.0f;

  const int64_t begin = task * p.task_rows;
  const int64_t end = begin + p.task_rows < p.vocab ? begin + p.task_rows : p.vocab;
  for (int64_t column = begin; column < end; column += tile) {
    const int count = end - column < tile ? (int)(end - column) : tile;
    const T* weight = (const T*)p.weight + column * p.weight_stride;
    linear_tile(
        weight, p.weight_stride, count, layout, p.packed,
        [&](int first_vector, int vectors, float* scores) {
          const int stride = vectors * kLanes;
          for (int m = 0; m < vectors; ++m) {
            const int64_t row = (int64_t)(first_vector + m) * kLanes;
            float* const c = scores + m * kLanes;
            finish_scores<T>(p, row, column, count, c, stride);
            Floats top = splat(-kInfinity), limit = load(threshold + row);
            int v = 0;
            for (; v < count; ++v) {
              const Floats score = max(load(c + v * stride), splat(-kInfinity));  // no NaN
              store(c + v * stride, score);
              top = max(score, top);
              for (uint32_t bits = greater_bits(score, limit); bits != 0; bits &= bits - 1) {
                const int lane = __builtin_ctz(bits);
                const int64_t list = (worker * p.rows + row + lane) * p.k;
                limit[lane] = insert(p.keys + list, p.columns + list, p.k, score[lane], column + v);
              }
            }
            store(threshold + row, limit);

            const Floats old = load(maximum + row), highest = max(top, old);
            const Floats base = select(highest > -kInfinity, highest, Floats{});
            const Floats shift = base * kLog2E;
            // exactly 1 times the sum while the maximum stays
            Floats even = load(sum + row) * exp2((old - base) * kLog2E), odd = {};
            for (v = 0; v + 1 < count; v += 2) {
              even += exp2(load(c + v * stride) * kLog2E - shift);
              odd += exp2(load(c + (v + 1) * stride) * kLog2E - shift);
            }
            if (v < count) even += exp2(load(c + v * stride) * kLog2E - shift);
            store(maximum + row, highest);
            store(sum + row, even + odd);
          }
        });
  }
}

}  // namespace

LinearTopkSizes linear_topk_sizes(const LinearTopk& p) {
  return with_type(p.dtype, [&](auto type) {
    const auto layout = RowLayout::of<decltype(type)>(p.rows, p.depth);
    return LinearTopkSizes{layout.vectors * kLanes, layout.packed_floats(),
                           tile_rows<decltype(type)>(layout)};
  });
}

void linear_topk_pack(const LinearTopk& p) {
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const auto row_of = [&](int64_t row) { return (const T*)p.x + row * p.x_stride; };
    pack_rows<T>(RowLayout::of<T>(p.rows, p.depth), row_of, p.packed);
  });
}

void linear_topk_task(const LinearTopk& p, int64_t worker, int64_t task) {
  with_type(p.dtype, [&](auto type) { run_task<decltype(type)>(p, worker, task); });
}

}  // namespace dspark::DSPARK_ISA
