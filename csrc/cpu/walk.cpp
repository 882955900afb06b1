#include "cpu/walk.h"

namespace dspark {
namespace {

// An entry's dimensions are taken from the smallest stride up, and merged where they are adjacent.
CacheLayout cache_layout(const Tensor& cache, const char* op) {
  constexpr int kMaxDims = 8;
  struct Dim {
    int64_t stride, size;
  };
  const auto sizes = cache.sizes(), strides = cache.strides();
  const int rank = static_cast<int>(sizes.size());
  if (rank - 2 > kMaxDims) fail(op, "caches", "have at most 10 dimensions", rank);
  Dim dims[kMaxDims];
  int count = 0;
  for (int d = 2; d < rank; ++d) {
    if (sizes[d] == 1) continue;
    int i = count++;
    for (; i > 0 && dims[i - 1].stride > strides[d]; --i) dims[i] = dims[i - 1];
    dims[i] = {strides[d], sizes[d]};
  }
  Dim run{1, 1}, outer{0, 1};
  for (int d = 0; d < count; ++d) {
    if (outer.size == 1 && dims[d].stride == run.size) {
      run.size *= dims[d].size;
    } else if (outer.size == 1) {
      outer = dims[d];
    } else if (dims[d].stride == outer.stride * outer.size) {
      outer.size *= dims[d].size;
    } else {
      fail(op, "caches", "have entries with at most one gap between dimensions",
           shape_string(cache));
    }
  }
  const int64_t item = cache.element_size();
  return {static_cast<char*>(cache.mutable_data_ptr()),
          strides[0] * item,
          strides[1] * item,
          run.size * item,
          outer.size,
          outer.stride * item};
}

void move_entry(const CacheLayout& cache, int64_t from_row, int64_t from_place, int64_t to_row,
                int64_t to_place) {
  const char* from = cache.data + from_row * cache.row_stride + from_place * cache.slot_stride;
  char* to = cache.data + to_row * cache.row_stride + to_place * cache.slot_stride;
  for (int64_t run = 0; run < cache.runs; ++run) {
    std::memcpy(to + run * cache.run_stride, from + run * cache.run_stride, cache.run_bytes);
  }
}

}  // namespace

Caches::Caches(int64_t batch, const std::vector<Tensor>& caches, const Tensor& cache_seqlens,
               const std::optional<Tensor>& block_table, const char* op)
    : seqlens_(whole(cache_seqlens, ScalarType::Int, {batch}, op, "cache_seqlens")),
      table_(block_table, ScalarType::Int, {batch, -1}, op, "block_table") {
  slots = {seqlens_.const_data_ptr<int32_t>(), table_.data<int32_t>(), 0, 0,
           block_table ? block_table->size(1) : 0};
  if (caches.empty() || batch == 0) return;
  slots.rows = caches[0].size(0), slots.row_slots = caches[0].size(1);
  check(block_table || slots.rows == batch, op, "caches", "have one row per request", slots.rows);
  layouts.reserve(caches.size());
  for (const Tensor& cache : caches) {
    const auto sizes = cache.sizes();
    if (sizes.size() < 2 || sizes[0] != slots.rows || sizes[1] != slots.row_slots) {
      fail(op, "caches", "have the same first two sizes", shape_string(cache));
    }
    layouts.push_back(cache_layout(cache, op));
  }
  if (slots.row_slots == 0) layouts.clear();
}

void compact_caches(const WalkBatch& walks, int64_t batch, const Caches& caches) {
  const auto compact = [&](const CacheLayout& cache, int64_t b) {
    const WalkOutputs walk = walks.outputs(b);
    for_moves(caches.slots.slots(b), walk.path, *walk.num_accepted, caches.slots.seqlens[b],
              [&](int64_t from_row, int64_t from_place, int64_t to_row, int64_t to_place) {
                move_entry(cache, from_row, from_place, to_row, to_place);
              });
  };
  if (caches.layouts.empty()) return;
  // paged requests may share a cache's blocks, but never the slots beyond their prefixes
  const int64_t entry = caches.layouts[0].run_bytes * caches.layouts[0].runs;
  const int64_t tasks = static_cast<int64_t>(caches.layouts.size());
  constexpr int64_t kWorthThreads = 1 << 20;  // bytes
  if (tasks * batch * entry * 4 < kWorthThreads) {
    for (const CacheLayout& cache : caches.layouts) {
      for (int64_t b = 0; b < batch; ++b) compact(cache, b);
    }
    return;
  }
  parallel_tasks(tasks, [&](int64_t, int64_t task) {
    for (int64_t b = 0; b < batch; ++b) compact(caches.layouts[task], b);
  });
}

}  // namespace dspark
