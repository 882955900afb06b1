// One pass over a task's rows of the weight, with SiLU and the residual on every tile.

#include "cpu/draft_blocks.h"

#include "cpu/kernels/linear.h"
#include "cpu/kernels/math.h"

namespace dspark::DSPARK_ISA {
namespace {

// out = residual_scale · hidden + update for the columns of one row; update[v] is at v · stride.
template <typename T>
DSPARK_INLINE void add_residual(const DraftBlocks& p, const T* hidden, int64_t column, int count,
                                const float* update, int stride, T* out) {
  const T* scale = (const T*)p.residual_scale;
  for (int v = 0; v < count;) {
    const int64_t i = (column + v) % p.dim;  // a tile may end one head and begin the next
    int width = count - v < kLanes ? count - v : kLanes;
    if (p.dim - i < width) width = (int)(p.dim - i);
    float lanes[kLanes] = {};
    for (int j = 0; j < width; ++j) lanes[j] = update[(v + j) * stride];
    Floats residual = load_up_to(hidden + i, width);
    if (scale != nullptr) residual *= load_up_to(scale + column + v, width);
    store_up_to(out + v, load(lanes) + residual, width);
    v += width;
  }
}

template <typename T>
void run_task(const DraftBlocks& p, int64_t task) {
  const typename DotOf<T>::type::Unit unit;
  const auto layout = RowLayout::of<T>(p.rows, p.depth);
  const int tile = tile_rows<T>(layout);
  const T* bias = (const T*)p.bias;
  const int64_t columns = p.heads * p.dim, begin = task * p.task_rows;
  const int64_t end = begin + p.task_rows < columns ? begin + p.task_rows : columns;
  for (int64_t column = begin; column < end; column += tile) {
    const int count = end - column < tile ? (int)(end - column) : tile;
    const T* weight = (const T*)p.weight + column * p.depth;
    const auto finish = [&](int first_vector, int vectors, float* c) {
      const int stride = vectors * kLanes, first_row = first_vector * kLanes;
      for (int v = 0; v < count; ++v) {
        const float shift = to_float(bias[column + v]);
        for (float* lanes = c + v * stride; lanes < c + (v + 1) * stride; lanes += kLanes) {
          store(lanes, silu(load(lanes) + shift));
        }
      }
      const int left = (int)p.rows - first_row, rows = left < stride ? left : stride;
      for (int m = 0; m < rows; ++m) {
        const T* hidden = (const T*)p.hidden + (first_row + m) * p.hidden_stride;
        T* out = (T*)p.out + (first_row + m) * columns + column;
        add_residual(p, hidden, column, count, c + m, stride, out);
      }
    };
    linear_tile(weight, p.depth, count, layout, p.packed, finish);
  }
}

}  // namespace

DraftBlocksSizes draft_blocks_sizes(const DraftBlocks& p) {
  return with_type(p.dtype, [&](auto type) {
    const auto layout = RowLayout::of<decltype(type)>(p.rows, p.depth);
    return DraftBlocksSizes{layout.packed_floats(), tile_rows<decltype(type)>(layout)};
  });
}

void draft_blocks_pack(const DraftBlocks& p) {
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const auto row_of = [&](int64_t row) { return (const T*)p.features + row * p.features_stride; };
    pack_rows<T>(RowLayout::of<T>(p.rows, p.depth), row_of, p.packed);
  });
}

void draft_blocks_task(const DraftBlocks& p, int64_t task) {
  with_type(p.dtype, [&](auto type) { run_task<decltype(type)>(p, task); });
}

}  // namespace dspark::DSPARK_ISA
