// One task: some rows, that is (node, query head) pairs of one KV head, over one chunk of cache
// slots. A tile of slots is packed once for all rows: for the scores rows lie across the lanes and
// a slot's key is broadcast, so that the softmax needs no sum across lanes; for the output the
// values of a slot lie across the lanes and a row's weight is broadcast.

#include "cpu/tree_attention.h"

#include "cpu/kernels/math.h"
#include "cpu/kernels/rows.h"

namespace dspark::DSPARK_ISA {
namespace {

constexpr int kTileSlots = 48;  // even, and a multiple of rows_at_once

DSPARK_INLINE int padded_dim(int64_t head_dim) { return (head_dim + kLanes - 1) / kLanes * kLanes; }

// The memory of one worker.
template <typename T>
struct Scratch {
  float *query, *keys, *values, *scores, *weights;
  RowLayout layout;

  Scratch(const TreeAttention& p, int64_t rows, float* memory)
      : layout(RowLayout::of<T>(rows, p.head_dim)) {
    query = memory;
    keys = query + RowLayout::of<T>(kGroupRows, p.head_dim).packed_floats();
    values = keys + kTileSlots * layout.words;
    scores = values + kTileSlots * padded_dim(p.head_dim);
    weights = scores + kTileSlots * kMaxVectors * kLanes;
  }
  int64_t floats() const { return weights + kTileSlots * kMaxVectors * kLanes - query; }
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

// Which slots a node sees, and where they are.
struct View {
  const TreeAttention& p;
  const TreeAttentionTask& task;
  const int64_t* ancestors;
  int64_t seqlen;
  int16_t depth[kMaxNodes];
  int64_t first_row, rows, lowest_depth = kMaxNodes, highest_depth = -1;

  View(const TreeAttention& p, const TreeAttentionTask& task) : p(p), task(task) {
    const int64_t words = (p.nodes + 63) / 64;
    ancestors = p.ancestors + task.request * p.nodes * words;
    seqlen = p.cache_seqlens[task.request];
    first_row = task.group * kGroupRows;
    rows = p.rows(task.request, task.group);
    for (int64_t node = 0; node < p.nodes; ++node) {
      depth[node] = -1;
      for (int64_t w = 0; w < words; ++w) {
        depth[node] += __builtin_popcountll(ancestors[node * words + w]);
      }
    }
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t own = depth[node_of(row)];
      lowest_depth = own < lowest_depth ? own : lowest_depth;
      highest_depth = own > highest_depth ? own : highest_depth;
    }
  }

  int64_t node_of(int64_t row) const { return p.node_of(task.request, first_row + row); }

  // The first slot that any row sees, and the first one that all rows see.
  int64_t first_seen() const { return p.window > 0 ? seqlen + lowest_depth - p.window + 1 : 0; }
  int64_t seen_by_all() const { return p.window > 0 ? seqlen + highest_depth - p.window + 1 : 0; }

  // Bit i: whether a row sees the slot begin + i, for i < 64.
  uint64_t seen(int64_t row, int64_t begin) const {
    const int64_t node = node_of(row), in_prefix = seqlen - begin;
    const uint64_t bits = low_bits(in_prefix) | ancestor_bits(node, -in_prefix);
    if (p.window == 0) return bits;
    uint64_t near = 0;
    for (int64_t i = 0; i < 64; ++i) {
      if (!(bits >> i & 1)) continue;
      const int64_t position = i < in_prefix ? i - in_prefix : depth[i - in_prefix];
      near |= (uint64_t)(position > depth[node] - p.window) << i;
    }
    return near;
  }

  static uint64_t low_bits(int64_t count) {
    return count <= 0 ? 0 : count >= 64 ? ~0ull : (1ull << count) - 1;
  }

  // 64 bits from bit `from` on, which may be negative, of the nodes on a node's path.
  uint64_t ancestor_bits(int64_t node, int64_t from) const {
    const int64_t words = (p.nodes + 63) / 64;
    uint64_t bits = 0;
    for (int64_t w = 0; w < words; ++w) {
      const uint64_t word = ancestors[node * words + w];
      const int64_t shift = w * 64 - from;
      if (shift > -64 && shift < 64) bits |= shift < 0 ? word >> -shift : word << shift;
    }
    return bits & low_bits(p.nodes - from);
  }

  // The block that holds a slot, or -1.
  int64_t block_of(int64_t slot) const {
    if (p.block_table == nullptr) return task.request;
    const int64_t entry = task.request * p.blocks_per_request + slot / p.block_size;
    const int32_t block = p.block_table[entry];
    return block >= 0 && block < p.blocks ? block : -1;
  }
};

// Where the keys and values of a tile's slots are; null for absent ones.
template <typename C>
struct Slots {
  const C *keys[kTileSlots], *values[kTileSlots + 1];
  uint64_t present = 0;  // bits

  Slots(const View& view, int64_t begin, int count) {
    const TreeAttention& p = view.p;
    int64_t block = -1, inside = 0;
    for (int i = 0; i < count; ++i, ++inside) {
      if (i == 0 || inside == p.block_size) {
        block = view.block_of(begin + i);
        inside = (begin + i) % p.block_size;
      }
      const int64_t k = block * p.k_stride[0] + inside * p.k_stride[1];
      const int64_t v = block * p.v_stride[0] + inside * p.v_stride[1];
      keys[i] = block < 0 ? nullptr : (const C*)p.k + k + view.task.kv_head * p.k_stride[2];
      values[i] = block < 0 ? nullptr : (const C*)p.v + v + view.task.kv_head * p.v_stride[2];
      present |= (uint64_t)(block >= 0) << i;
    }
    values[count] = nullptr;  // completes a pair
  }
};

// Values of kLanes elements from `e` on, zeros where there are none.
template <typename C>
DSPARK_NOINLINE void load_edge(const C* slot, int64_t e, int64_t dim, C* to) {
  for (int i = 0; i < kLanes; ++i) to[i] = slot != nullptr && e + i < dim ? slot[e + i] : C{};
}

template <typename Dot, typename C>
DSPARK_INLINE Floats value_words(const C* first, const C* second) {
  if constexpr (Dot::kPerWord == 1) {
    return load(first);
  } else {
    return pack_bf16(load_bf16(first), load_bf16(second));
  }
}

// Values of the tile as words across the lanes: [count / kPerWord][dim]
template <typename Dot, typename C>
DSPARK_INLINE void pack_values(const TreeAttention& p, const C* const* slots, int count, int dim,
                               float* to) {
  const ptrdiff_t next = kTileSlots * p.v_stride[1] * sizeof(C);
  for (int i = 0; i < count; i += Dot::kPerWord, to += dim) {
    const C *first = slots[i], *second = slots[i + Dot::kPerWord - 1];
    int e = 0;
    if (first != nullptr && second != nullptr) {
      for (; e + kLanes <= p.head_dim; e += kLanes) {
        __builtin_prefetch((const char*)(first + e) + next, 0, 2);
        __builtin_prefetch((const char*)(second + e) + next, 0, 2);
        store(to + e, value_words<Dot>(first + e, second + e));
      }
    }
    for (C edge[2][kLanes]; e < dim; e += kLanes) {
      load_edge(first, e, p.head_dim, edge[0]);
      load_edge(second, e, p.head_dim, edge[1]);
      store(to + e, value_words<Dot>(edge[0], edge[1]));
    }
  }
}

// Rows of words.
struct Keys {
  const char* rows;
  ptrdiff_t stride;
};

// The tile's keys: in place where their words can be read as they are, else copied.
template <typename Dot, typename C>
DSPARK_INLINE Keys find_keys(const TreeAttention& p, const Slots<C>& slots, int count, int words,
                             float* copy) {
  const ptrdiff_t stride = p.k_stride[1] * sizeof(C), next = kTileSlots * stride;
  const bool in_place = Dot::template kHolds<C> && words * Dot::kPerWord == p.head_dim;
  if (in_place && p.block_table == nullptr && count == kTileSlots) {
    for (int i = 0; i < count; ++i) prefetch_row((const char*)slots.keys[i] + next, words * 4);
    return {(const char*)slots.keys[0], stride};
  }
  for (int i = 0; i < count; ++i) {
    const C* key = slots.keys[i];
    stage_words<Dot>(key, key == nullptr ? 0 : p.head_dim, words, copy + i * words, next);
  }
  return {(const char*)copy, words * (ptrdiff_t)sizeof(float)};
}

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
  const Floats shift = select(highest > -kInfinity, highest, Floats{}) * kLog2E;
  const Floats rescale = exp2(old * kLog2E - shift);
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

// T: type of the queries, C: of the cache.
template <typename T, typename C>
void run_task(const TreeAttention& p, const TreeAttentionTask& task, int64_t index, float* memory) {
  using Dot = typename DotOf<T>::type;
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
    return (const T*)p.q + task.request * p.q_stride[0] + node * p.q_stride[1] +
           head * p.q_stride[2];
  };
  pack_rows<T>(layout, query, scratch.query);
  const float scale = p.scale * (p.k_scale ? p.k_scale[task.kv_head] : 1.0f);

  int64_t begin = task.begin > view.first_seen() ? task.begin : view.first_seen();
  for (; begin < task.end; begin += kTileSlots) {
    const int count = task.end - begin < kTileSlots ? (int)(task.end - begin) : kTileSlots;
    const Slots<C> slots(view, begin, count);
    const Keys keys = find_keys<Dot>(p, slots, count, layout.words, scratch.keys);
    pack_values<Dot>(p, slots.values, count, dim, scratch.values);
    const bool masked = slots.present != View::low_bits(count) || begin < view.seen_by_all() ||
                        begin + count > view.seqlen;
    for (int first = 0; first < layout.vectors; first += kMaxVectors) {
      const int vectors = layout.block_vectors(first), stride = vectors * kLanes;
      const float* a = scratch.query + layout.offset(first, 0);
      with_vectors(vectors, [&](auto v) {
        constexpr int kVectors = decltype(v)::value;
        for (int i = 0; i < count; i += rows_at_once(kVectors)) {
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
      for (int e = 0; e < dim; e += kMaxVectors * kLanes) {
        const int width = (dim - e) / kLanes < kMaxVectors ? (dim - e) / kLanes : kMaxVectors;
        with_vectors(width, [&](auto v) {
          constexpr int kVectors = decltype(v)::value;
          for (int r = 0; r < rows; r += rows_of_sums(kVectors)) {
            weighted_sums<Dot, kVectors>(scratch.values + e, dim, scratch.weights + r, stride,
                                         (count + Dot::kPerWord - 1) / Dot::kPerWord, factor + r,
                                         partial.out + (row + r) * dim + e, dim);
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
    float total = 0.0f;
    for (int64_t i = first; i < last; ++i) {
      const Partial partial(p, i);
      if (highest > -kInfinity)
        total += partial.sum[row] * __builtin_expf(partial.maximum[row] - highest);
    }
    const float v_scale = p.v_scale ? p.v_scale[task.kv_head] : 1.0f;
    const int64_t node = p.node_of(task.request, first_row + row);
    const int64_t head = task.kv_head * group + (first_row + row) % group;
    const int64_t place = (task.request * p.nodes + node) * p.heads + head;
    p.logsumexp[place] = total > 0 ? highest + __builtin_logf(total) : -kInfinity;
    T* out = (T*)p.out + place * p.head_dim;
    for (int64_t e = 0; e < p.head_dim; e += kLanes) {
      Floats sum = {};
      for (int64_t i = first; total > 0 && i < last; ++i) {
        const Partial partial(p, i);
        const float weight = __builtin_expf(partial.maximum[row] - highest) * v_scale / total;
        sum += load(partial.out + row * partial.dim + e) * weight;
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
