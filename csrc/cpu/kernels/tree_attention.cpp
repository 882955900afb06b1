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
    rows = p.rows() - first_row < kGroupRows ? p.rows() - first_row : kGroupRows;
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

  int64_t node_of(int64_t row) const { return (first_row + row) / p.queries_per_head(); }

  // The first slot that any row sees, and the first one that all rows see.
  int64_t first_seen() const { return p.window > 0 ? seqlen + lowest_depth - p.window + 1 : 0; }
  int64_t seen_by_all() const { return p.window > 0 ? seqlen + highest_depth - p.window + 1 : 0; }

  bool sees(int64_t row, int64_t slot) const {
    const int64_t node = node_of(row), limit = depth[node] - p.window;
    if (slot < seqlen) return p.window == 0 || slot - seqlen > limit;
    const int64_t other = slot - seqlen, words = (p.nodes + 63) / 64;
    if (other >= p.nodes) return false;
    const bool related = ancestors[node * words + other / 64] >> (other % 64) & 1;
    return related && (p.window == 0 || depth[other] > limit);
  }

  // The block that holds a slot, or -1.
  int64_t block_of(int64_t slot) const {
    if (p.block_table == nullptr) return task.request;
    const int64_t entry = task.request * p.blocks_per_request + slot / p.block_size;
    const int32_t block = p.block_table[entry];
    return block >= 0 && block < p.blocks ? block : -1;
  }
};

// Calls use(i, keys, values) for slot begin + i of a tile, with null pointers for absent slots;
// returns whether all are present.
template <typename C, typename Use>
DSPARK_INLINE bool for_slots(const View& view, int64_t begin, int count, const Use& use) {
  const TreeAttention& p = view.p;
  bool complete = true;
  int64_t block = -1, inside = p.block_size;
  for (int i = 0; i < count; ++i, ++inside) {
    if (inside == p.block_size || i == 0) {
      block = view.block_of(begin + i);
      inside = (begin + i) % p.block_size;
    }
    complete &= block >= 0;
    const int64_t k = block * p.k_stride[0] + inside * p.k_stride[1];
    const int64_t v = block * p.v_stride[0] + inside * p.v_stride[1];
    use(i, block < 0 ? nullptr : (const C*)p.k + k + view.task.kv_head * p.k_stride[2],
        block < 0 ? nullptr : (const C*)p.v + v + view.task.kv_head * p.v_stride[2]);
  }
  return complete;
}

// Values of up to kLanes elements of a slot; zeros where there are none.
template <typename C>
DSPARK_INLINE Floats load_values(const C* values, int64_t element, int64_t dim) {
  if (values == nullptr) return Floats{};
  const int64_t left = dim - element;
  return left >= kLanes ? load(values + element) : load_first(values + element, (int)left);
}

// The tile's keys as rows of words, and its values as words across the lanes.
template <typename Dot, typename C>
DSPARK_INLINE bool pack_tile(const View& view, int64_t begin, int count, int words, int dim,
                             float* keys, float* values) {
  const C* slots[kTileSlots + 1] = {};
  const TreeAttention& p = view.p;
  const int64_t next_keys = kTileSlots * p.k_stride[1] * sizeof(C);
  const int64_t next_values = kTileSlots * p.v_stride[1] * sizeof(C);
  const bool complete = for_slots<C>(view, begin, count, [&](int i, const C* k, const C* v) {
    stage_words<Dot>(k, k == nullptr ? 0 : p.head_dim, words, keys + i * words, next_keys);
    slots[i] = v;
    for (int64_t byte = 0; v != nullptr && byte < p.head_dim * (int)sizeof(C); byte += 64) {
      __builtin_prefetch((const char*)v + byte + next_values, 0, 2);
    }
  });
  for (int i = 0; i < count; i += Dot::kPerWord) {
    float* to = values + i / Dot::kPerWord * dim;
    for (int e = 0; e < dim; e += kLanes) {
      const Floats first = load_values(slots[i], e, p.head_dim);
      if constexpr (Dot::kPerWord == 1) {
        store(to + e, first);
      } else {
        const Words second = round_to_bf16(load_values(slots[i + 1], e, p.head_dim));
        store_as(to + e, round_to_bf16(first) | second << 16);
      }
    }
  }
  return complete;
}

DSPARK_INLINE Floats tanh(Floats x) { return 1.0f - 2.0f / (exp(2.0f * x) + 1.0f); }

// Scores of one vector of rows -> weights e^(score - maximum), as words of weighted_sums.
template <typename Dot>
DSPARK_INLINE void softmax_tile(const View& view, float scale, int64_t begin, int count, int row,
                                bool masked, float* scores, float* weights, int stride,
                                float* maximum, float* sum, float* factor) {
  const float softcap = view.p.softcap;
  Floats top = splat(-kInfinity);
  for (int i = 0; i < count; ++i) {
    Floats score = load(scores + i * stride) * scale;
    if (softcap > 0) score = softcap * tanh(score / softcap);
    store(scores + i * stride, score);
    top = max(score, top);
  }
  if (masked) {
    top = splat(-kInfinity);
    const int rows = view.rows - row < kLanes ? (int)(view.rows - row) : kLanes;
    for (int i = 0; i < count; ++i) {
      const bool present = view.block_of(begin + i) >= 0;
      for (int lane = 0; lane < rows; ++lane) {
        if (!present || !view.sees(row + lane, begin + i)) scores[i * stride + lane] = -kInfinity;
      }
      top = max(load(scores + i * stride), top);
    }
  }
  const Floats old = load(maximum), highest = max(top, old);
  const Floats shift = select(highest > -kInfinity, highest, splat(0.0f));
  const Floats rescale = exp(old - shift);
  Floats total = load(sum) * rescale;
  for (int i = 0; i < count; i += Dot::kPerWord) {
    const Floats first = exp(load(scores + i * stride) - shift);
    total += first;
    float* to = weights + i / Dot::kPerWord * stride;
    if constexpr (Dot::kPerWord == 1) {
      store(to, first);
    } else {
      const bool last = i + 1 == count;
      const Floats second = last ? Floats{} : exp(load(scores + (i + 1) * stride) - shift);
      total += second;
      store_as(to, round_to_bf16(first) | round_to_bf16(second) << 16);
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
    const bool complete =
        pack_tile<Dot, C>(view, begin, count, layout.words, dim, scratch.keys, scratch.values);
    const bool masked = !complete || begin < view.seen_by_all() || begin + count > view.seqlen;
    for (int first = 0; first < layout.vectors; first += kMaxVectors) {
      const int vectors = layout.block_vectors(first), stride = vectors * kLanes;
      const float* a = scratch.query + layout.offset(first, 0);
      with_vectors(vectors, [&](auto v) {
        constexpr int kVectors = decltype(v)::value;
        for (int i = 0; i < count; i += rows_at_once(kVectors)) {
          block_product<Dot, kVectors>(layout, a, (const char*)(scratch.keys + i * layout.words),
                                       layout.words * sizeof(float), layout.words,
                                       scratch.scores + i * stride, false, 0);
        }
      });
      alignas(64) float factor[kMaxVectors * kLanes];
      for (int m = 0; m < vectors; ++m) {
        const int row = (first + m) * kLanes;
        softmax_tile<Dot>(view, scale, begin, count, row, masked, scratch.scores + m * kLanes,
                          scratch.weights + m * kLanes, stride, partial.maximum + row,
                          partial.sum + row, factor + m * kLanes);
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
  const int64_t left = p.rows() - first_row, rows = left < kGroupRows ? left : kGroupRows;
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
    const int64_t node = (first_row + row) / group;
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
