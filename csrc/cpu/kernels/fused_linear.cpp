// One pass over the weights for all rows, with bias, gate and residual on every tile of the
// product; then the norm of whole rows.

#include "cpu/fused_linear.h"

#include "cpu/kernels/linear.h"
#include "cpu/kernels/math.h"
#include "cpu/kernels/norm.h"

namespace dspark::DSPARK_ISA {
namespace {

// c [count, vectors, kLanes] += bias[n]
template <typename T>
DSPARK_INLINE void add_bias(const void* bias, int64_t column, int count, int stride, float* c) {
  if (bias == nullptr) return;
  for (int n = 0; n < count; ++n) {
    const float shift = to_float(((const T*)bias)[column + n]);
    for (float* lanes = c + n * stride; lanes < c + (n + 1) * stride; lanes += kLanes) {
      store(lanes, load(lanes) + shift);
    }
  }
}

// gate [count, vectors, kLanes] = SiLU(gate) · up
DSPARK_INLINE void apply_gate(int size, const float* up, float* gate) {
  for (int i = 0; i < size; i += kLanes) store(gate + i, silu(load(gate + i)) * load(up + i));
}

// Writes c [count, vectors, kLanes], whose lanes are rows from `first_row` on, to the columns of
// the output from `column` on.
template <typename T>
DSPARK_INLINE void write_tile(const FusedLinear& p, int64_t first_row, int vectors, int64_t column,
                              int count, const float* c) {
  for (int v = 0; v < vectors; ++v) {
    const int64_t row = first_row + v * kLanes;
    const int rows = p.rows - row < kLanes ? (int)(p.rows - row) : kLanes;
    for (int n = 0; n < count; n += kLanes) {
      const int left = count - n;
      Floats tile[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        tile[i] = i < left ? load(c + ((n + i) * vectors + v) * kLanes) : Floats{};
      }
      transpose(tile);
      for (int i = 0; i < rows; ++i) {
        Floats value = tile[i];
        if (p.residual != nullptr) {
          const T* residual = (const T*)p.residual + (row + i) * p.residual_stride;
          value += load_up_to(residual + column + n, left);
        }
        store_up_to((T*)p.out + (row + i) * p.width + column + n, value, left);
      }
    }
  }
}

// Vectors of a group of rows: blocks that fit into a core's L2 cache, one at least.
DSPARK_INLINE int group_vectors(const RowLayout& layout) {
  constexpr int64_t kBytes = 1024 * 1024;
  const int64_t blocks = kBytes / ((int64_t)layout.words * kMaxVectors * sizeof(Floats));
  return (blocks < 1 ? 1 : blocks) * kMaxVectors;
}

struct Group {
  int begin, end;  // vectors
};

DSPARK_INLINE Group group_of(const RowLayout& layout, int64_t index) {
  const int size = group_vectors(layout), begin = (int)index * size;
  return {begin, layout.vectors - begin < size ? layout.vectors : begin + size};
}

template <typename T>
void run_task(const FusedLinear& p, int64_t task) {
  const typename DotOf<T>::type::Unit unit;
  const auto layout = RowLayout::of<T>(p.rows, p.depth);
  const auto group = group_of(layout, task / p.group_tasks);
  task %= p.group_tasks;
  int part = 0;
  int64_t before = 0;  // columns of the output
  for (; task >= p.tasks(part); ++part) task -= p.tasks(part), before += p.columns[part];
  const int tile = tile_rows<T>(layout);
  const int64_t begin = task * p.task_columns, columns = p.columns[part];
  const int64_t end = begin + p.task_columns < columns ? begin + p.task_columns : columns;
  const auto rows_of = [&](int i, int64_t n) {
    return (const T*)p.weight[i] + n * p.weight_stride[i];
  };
  alignas(64) float c[kMaxTile * kMaxVectors * kLanes], up[kMaxTile * kMaxVectors * kLanes];
  for (int64_t n = begin; n < end; n += tile) {
    const int count = end - n < tile ? (int)(end - n) : tile;
    for (int first = group.begin; first < group.end; first += kMaxVectors) {
      const int vectors = layout.block_vectors(first), stride = vectors * kLanes;
      with_vectors(vectors, [&](auto v) {
        constexpr int kVectors = decltype(v)::value;
        tile_product<T, kVectors>(rows_of(part, n), p.weight_stride[part], count, layout, p.packed,
                                  first, c);
        if (!p.gated) return;
        tile_product<T, kVectors>(rows_of(1, n), p.weight_stride[1], count, layout, p.packed, first,
                                  up);
      });
      add_bias<T>(p.bias[part], n, count, stride, c);
      if (p.gated) {
        add_bias<T>(p.bias[1], n, count, stride, up);
        apply_gate(count * stride, up, c);
      }
      write_tile<T>(p, first * kLanes, vectors, before + n, count, c);
    }
  }
}

}  // namespace

FusedLinearSizes fused_linear_sizes(const FusedLinear& p) {
  return with_type(p.dtype, [&](auto type) {
    const auto layout = RowLayout::of<decltype(type)>(p.rows, p.depth);
    const int size = group_vectors(layout);
    return FusedLinearSizes{layout.packed_floats(), tile_rows<decltype(type)>(layout),
                            (layout.vectors + size - 1) / size};
  });
}

void fused_linear_pack(const FusedLinear& p, int64_t index) {
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const auto layout = RowLayout::of<T>(p.rows, p.depth);
    const auto group = group_of(layout, index);
    const auto row_of = [&](int64_t row) { return (const T*)p.x + row * p.x_stride; };
    pack_rows<T>(layout, row_of, p.packed, group.begin, group.end);
  });
}

void fused_linear_task(const FusedLinear& p, int64_t task) {
  with_type(p.dtype, [&](auto type) { run_task<decltype(type)>(p, task); });
}

void fused_linear_norm(const FusedLinear& p, int64_t task) {
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t begin = task * kNormRows;
    const int64_t end = begin + kNormRows < p.rows ? begin + kNormRows : p.rows;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t place = row * p.width;
      rms_norm((const T*)p.out + place, (const T*)p.norm_weight, p.width, p.eps,
               (T*)p.normed + place);
    }
  });
}

}  // namespace dspark::DSPARK_ISA
