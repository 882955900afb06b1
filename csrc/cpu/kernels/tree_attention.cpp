// One task: some rows, that is (node, query head) pairs of one KV head, over one chunk of cache
// slots. A tile of slots is packed once for all rows: for the scores rows lie across the lanes and
// a slot's key is broadcast, so that the softmax needs no sum across lanes; for the output the
// values of a slot lie across the lanes and a row's weight is broadcast.

#include "cpu/tree_attention.h"

#include "cpu/kernels/cache_tile.h"
#include "cpu/kernels/math.h"
#include "cpu/kernels/rows.h"

namespace dspark::DSPARK_ISA {
namespace {

DSPARK_INLINE int padded_dim(int64_t head_dim) { return (head_dim + kLanes - 1) / kLanes * kLanes; }

constexpr int kTileWords = 32;  // pairs of a tile's slots, in whole tiles of a matrix unit

// The memory of one worker.
template <typename T>
struct Scratch {
  float *query, *keys, *values, *scores, *weights, *weight_rows;
  RowLayout layout;

  Scratch(const TreeAttention& p, int64_t rows, float* memory)
      : layout(RowLayout::of<T>(rows, p.head_dim)) {
    query = memory;
    keys = query + RowLayout::of<T>(kGroupRows, p.head_dim).packed_floats();
    values = keys + kTileSlots * layout.words;
    scores = values + kTileSlots * padded_dim(p.head_dim);
    weights = scores + kTileSlots * kMaxVectors * kLanes;
    weight_rows = weights + kTileSlots * kMaxVectors * kLanes;
  }
  int64_t floats() const { return weight_rows + kTileWords * kLanes - query; }
};

// One partial result: for every row its maximum, sum and weighted values.
struct Partial {
  float *maximum, *sum, *out;
  int dim;

  Partial(const TreeAttention& p, int64_t index) : dim(padded_dim(p.head_dim)) {
    maximum = p.partial + index * floats(p);
    sum = maximum + kGroupRows;
    out = sum + kGroupRows;
  }
  static int64_t floats(const TreeAttention& p) {
    return kGroupRows * (2 + padded_dim(p.head_dim));
  }
};

// tanh |x| = (1 - t) / (1 + t) with t = e^(-2|x|), by its sign
DSPARK_INLINE Floats tanh(Floats x) {
  const Floats t = exp2(select(x < 0.0f, x, -x) * (2.0f * kLog2E));
  const Floats y = (1.0f - t) / (1.0f + t);
  return select(x < 0.0f, -y, y);
}

// Sets the scores of slots that a row does not see, or that are absent, to -inf.
DSPARK_NOINLINE void hide_slots(const View& view, int64_t begin, int count, uint64_t present,
                                int row, float* scores, int stride) {
  uint32_t bits[2][kLanes] = {};
  for (int lane = 0; lane < kLanes && row + lane < view.rows; ++lane) {
    const uint64_t seen = view.seen(row + lane, begin) & present;
    bits[0][lane] = (uint32_t)seen, bits[1][lane] = (uint32_t)(seen >> 32);
  }
  for (int i = 0; i < count; ++i, scores += stride) {
    const Words seen = load_as<Words>(bits[i / 32]) >> (i % 32) & 1;
    store(scores, select((Ints)seen, load(scores), splat(-kInfinity)));
  }
}

// Scores of one vector of rows -> weights e^(score - maximum), as words of weighted_sums.
template <typename Dot>
DSPARK_INLINE void softmax_tile(const View& view, float scale, int64_t begin, int count, int row,
                                bool masked, uint64_t present, float* scores, float* weights,
                                int stride, float* maximum, float* sum, float* factor) {
  const int limit = count * stride;
  const float softcap = view.p.softcap;
  if (softcap > 0 || scale <= 0) {
    for (int i = 0; i < limit; i += stride) {
      const Floats score = load(scores + i) * scale;
      store(scores + i, softcap > 0 ? softcap * tanh(score / softcap) : score);
    }
    scale = 1.0f;
  }
  if (masked) hide_slots(view, begin, count, present, row, scores, stride);
  Floats top = splat(-kInfinity);
  for (int i = 0; i < limit; i += stride) top = max(load(scores + i) * scale, top);

  const Floats old = load(maximum), highest = max(top, old);
  const Floats base = select(highest > -kInfinity, highest, Floats{}), shift = base * kLog2E;
  const Floats rescale = exp2((old - base) * kLog2E);  // exactly 1 while the maximum stays
  scale *= kLog2E;
  Floats total = load(sum) * rescale;
  for (int i = 0; i < limit; i += Dot::kPerWord * stride, weights += stride) {
    const Floats first = exp2(load(scores + i) * scale - shift);
    total += first;
    if constexpr (Dot::kPerWord == 1) {
      store(weights, first);
    } else {
      const bool last = i + stride == limit;
      const Floats second = last ? Floats{} : exp2(load(scores + i + stride) * scale - shift);
      total += second;
      // 0 <= weight <= 1: adding half a unit in the last place rounds to bf16
      store(weights, pack_bf16(((Words)first + 0x8000) >> 16, ((Words)second + 0x8000) >> 16));
    }
  }
  store(maximum, highest);
  store(sum, total);
  store(factor, rescale);
}

// Calls f(Int<vectors>{}, e) for every block of `vectors` <= kMaxVectors vectors, from column e on.
template <typename F>
DSPARK_INLINE void over_columns(int dim, const F& f) {
  for (int e = 0; e < dim; e += kMaxVectors * kLanes) {
    const int width = (dim - e) / kLanes < kMaxVectors ? (dim - e) / kLanes : kMaxVectors;
    with_vectors(width, [&](auto v) { f(v, e); });
  }
}

// out [kLanes][dim] = out · factor + Σ weights · values, as weighted_sums, with a matrix unit. The
// `words` weights of each row become its row of weight_rows; values has zeros where there is none.
DSPARK_INLINE void sum_tiles(const float* values, const float* weights, int stride, int words,
                             const float* factor, int dim, float* weight_rows, float* out) {
  for (int w = 0; w < kTileWords; w += kLanes) {
    Floats tile[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      tile[i] = w + i < words ? load(weights + (w + i) * stride) : Floats{};
    }
    transpose(tile);
    for (int i = 0; i < kLanes; ++i) store(weight_rows + i * kTileWords + w, tile[i]);
  }
  for (int i = 0; i < kLanes; ++i) {
    if (factor[i] == 1.0f) continue;
    for (float* to = out + i * dim; to < out + (i + 1) * dim; to += kLanes) {
      store(to, load(to) * factor[i]);
    }
  }
  const ptrdiff_t row = dim * sizeof(float), weights_row = kTileWords * sizeof(float);
  over_columns(dim, [&](auto v, int e) {
    dot_tiles<decltype(v)::value>(values + e, row, (const char*)weight_rows, weights_row,
                                  kTileWords, out + e, row, true, nullptr);
  });
}

// T: type of the queries, C: of the cache.
template <typename T, typename C>
void run_task(const TreeAttention& p, const TreeAttentionTask& task, int64_t index, float* memory) {
  using Dot = typename DotOf<T>::type;
  const typename Dot::Unit unit;
  const View view(p, task);
  const Scratch<T> scratch(p, view.rows, memory);
  const RowLayout& layout = scratch.layout;
  const Partial partial(p, index);
  const int dim = partial.dim;
  for (int i = 0; i < kGroupRows; ++i) partial.maximum[i] = -kInfinity, partial.sum[i] = 0.0f;
  memset(partial.out, 0, layout.vectors * kLanes * dim * sizeof(float));

  const int64_t group = p.queries_per_head();
  const auto query = [&](int64_t row) {
    const int64_t node = view.node_of(row),
                  head = task.kv_head * group + (view.first_row + row) % group;
    return (const T*)p.q + p.q_offset(task.request, node) + head * p.q_stride[2];
  };
  pack_rows<T>(layout, query, scratch.query);
  const float scale = p.scale * (p.k_scale ? p.k_scale[task.kv_head] : 1.0f);

  const auto tile_slots = [&](int64_t from, int64_t end) {
    const int64_t left = end - from;
    return left < 0 ? 0 : left < kTileSlots ? (int)left : kTileSlots;
  };
  // the next chunk is often this worker's too: its first tile is prefetched like any other
  const int64_t wanted = view.seqlen + p.nodes, last = wanted < p.slots() ? wanted : p.slots();
  int64_t begin = task.begin > view.first_seen() ? task.begin : view.first_seen();
  Slots<C> tiles[2];  // this one and the next
  tiles[0].find(view, begin, tile_slots(begin, task.end));
  for (int turn = 0; begin < task.end; begin += kTileSlots, turn ^= 1) {
    const int count = tile_slots(begin, task.end);
    const Slots<C>& slots = tiles[turn];
    Slots<C>& ahead = tiles[turn ^ 1];
    const int64_t next = begin + count;
    ahead.find(view, next, tile_slots(next, next < task.end ? task.end : last));
    const Keys keys = find_keys<Dot>(p, slots, ahead.keys, count, layout.words, scratch.keys);
    pack_values<Dot>(p, slots.values, ahead.values, count, dim, scratch.values);
    const int words = (count + Dot::kPerWord - 1) / Dot::kPerWord;
    if (Dot::kInTiles) {
      memset(scratch.values + words * dim, 0, (kTileWords - words) * dim * sizeof(float));
    }
    const bool masked = slots.present != View::low_bits(count) || begin < view.seen_by_all() ||
                        begin + count > view.seqlen;
    for (int first = 0; first < layout.vectors; first += kMaxVectors) {
      const int vectors = layout.block_vectors(first), stride = vectors * kLanes;
      const float* a = scratch.query + layout.offset(first, 0);
      with_vectors(vectors, [&](auto v) {
        constexpr int kVectors = decltype(v)::value;
        for (int i = 0; i < count; i += rows_at_once<Dot>(kVectors)) {
          block_product<Dot, kVectors>(layout, a, keys.rows + i * keys.stride, keys.stride,
                                       layout.words, scratch.scores + i * stride, false, nullptr);
        }
      });
      alignas(64) float factor[kMaxVectors * kLanes];
      for (int m = 0; m < vectors; ++m) {
        const int row = (first + m) * kLanes;
        softmax_tile<Dot>(view, scale, begin, count, row, masked, slots.present,
                          scratch.scores + m * kLanes, scratch.weights + m * kLanes, stride,
                          partial.maximum + row, partial.sum + row, factor + m * kLanes);
      }
      const int row = first * kLanes, left = (int)view.rows - row;
      const int rows = left < stride ? left : stride;
      if constexpr (Dot::kInTiles) {
        for (int r = 0; r < rows; r += kLanes) {
          sum_tiles(scratch.values, scratch.weights + r, stride, words, factor + r, dim,
                    scratch.weight_rows, partial.out + (row + r) * dim);
        }
      } else {
        over_columns(dim, [&](auto v, int e) {
          constexpr int kVectors = decltype(v)::value;
          for (int r = 0; r < rows; r += rows_of_sums(kVectors)) {
            weighted_sums<Dot, kVectors>(scratch.values + e, dim, scratch.weights + r, stride,
                                         words, factor + r, partial.out + (row + r) * dim + e, dim);
          }
        });
      }
    }
  }
}

template <typename T>
void merge(const TreeAttention& p, const TreeAttentionTask& task, int64_t first, int64_t last) {
  const int64_t group = p.queries_per_head(), first_row = task.group * kGroupRows;
  const int64_t rows = p.rows(task.request, task.group);
  for (int64_t row = 0; row < rows; ++row) {
    float highest = -kInfinity;
    for (int64_t i = first; i < last; ++i) {
      const float maximum = Partial(p, i).maximum[row];
      highest = maximum > highest ? maximum : highest;
    }
    const float v_scale = p.v_scale ? p.v_scale[task.kv_head] : 1.0f;
    float total = 0.0f, weights[kMaxChunks];
    for (int64_t i = first; highest > -kInfinity && i < last; ++i) {
      const Partial partial(p, i);
      weights[i - first] = __builtin_expf(partial.maximum[row] - highest);
      total += partial.sum[row] * weights[i - first];
    }
    const int64_t node = p.node_of(task.request, first_row + row);
    const int64_t head = task.kv_head * group + (first_row + row) % group;
    const int64_t place = p.token(task.request, node) * p.heads + head;
    p.logsumexp[place] = total > 0 ? highest + __builtin_logf(total) : -kInfinity;
    T* out = (T*)p.out + place * p.head_dim;
    for (int64_t e = 0; e < p.head_dim; e += kLanes) {
      Floats sum = {};
      for (int64_t i = first; total > 0 && i < last; ++i) {
        const Partial partial(p, i);
        sum += load(partial.out + row * partial.dim + e) * (weights[i - first] * v_scale / total);
      }
      if (e + kLanes <= p.head_dim) {
        store(out + e, sum);
      } else {
        store_first(out + e, sum, (int)(p.head_dim - e));
      }
    }
  }
}

}  // namespace

TreeAttentionSizes tree_attention_sizes(const TreeAttention& p) {
  // the words of float are the most numerous ones
  return {Scratch<float>(p, kGroupRows, nullptr).floats(), Partial::floats(p)};
}

void tree_attention_task(const TreeAttention& p, const TreeAttentionTask& task, int64_t index,
                         int64_t worker) {
  float* memory = p.scratch + worker * tree_attention_sizes(p).scratch_floats;
  const bool fp8 = p.cache_dtype == DType::kFp8;
  if (p.dtype == DType::kFp32) {
    (fp8 ? run_task<float, Fp8> : run_task<float, float>)(p, task, index, memory);
  } else if (p.dtype == DType::kBf16) {
    (fp8 ? run_task<Bf16, Fp8> : run_task<Bf16, Bf16>)(p, task, index, memory);
  } else {
    (fp8 ? run_task<Fp16, Fp8> : run_task<Fp16, Fp16>)(p, task, index, memory);
  }
}

void tree_attention_merge(const TreeAttention& p, const TreeAttentionTask& task, int64_t first,
                          int64_t last) {
  if (p.dtype == DType::kFp32) {
    merge<float>(p, task, first, last);
  } else if (p.dtype == DType::kBf16) {
    merge<Bf16>(p, task, first, last);
  } else {
    merge<Fp16>(p, task, first, last);
  }
}

}  // namespace dspark::DSPARK_ISA
