#include "cpu/walk.h"

namespace dspark {
namespace {

// One slot's entry: `runs` runs of bytes, run_stride apart.
struct CacheLayout {
  char* data;
  int64_t row_stride, slot_stride, run_bytes, runs, run_stride;
};

// The dimensions of an entry, from the smallest stride up, merged where they are adjacent.
CacheLayout cache_layout(const Tensor& cache, const char* op) {
  const int64_t item = cache.element_size();
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size)
  for (int64_t d = 2; d < cache.dim(); ++d) {
    if (cache.size(d) != 1) dims.emplace_back(cache.stride(d), cache.size(d));
  }
  std::sort(dims.begin(), dims.end());
  std::vector<std::pair<int64_t, int64_t>> merged{{1, 1}};
  for (const auto& [stride, size] : dims) {
    auto& [last_stride, last_size] = merged.back();
    if (stride == last_stride * last_size) {
      last_size *= size;
    } else {
      merged.emplace_back(stride, size);
    }
  }
  check(merged.size() <= 2, op, "caches", "have entries of at most one strided dimension",
        shape_string(cache));
  const auto [run_stride, runs] =
      merged.size() == 2 ? merged[1] : std::pair<int64_t, int64_t>{0, 1};
  return {static_cast<char*>(cache.data_ptr()),
          cache.stride(0) * item,
          cache.stride(1) * item,
          merged[0].second * item,
          runs,
          run_stride * item};
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

void compact_caches(const Walks& walks, const std::vector<Tensor>& caches,
                    const Tensor& cache_seqlens, const std::optional<Tensor>& block_table,
                    const char* op) {
  check_dtype(cache_seqlens, ScalarType::Int, op, "cache_seqlens");
  check_shape(cache_seqlens, {walks.batch}, op, "cache_seqlens", "have shape [B]");
  const Optional table(block_table, ScalarType::Int, {walks.batch, -1}, op, "block_table");
  const int64_t table_length = block_table ? block_table->size(1) : 0;
  if (caches.empty() || walks.batch == 0) return;
  const Tensor seqlens = torch::stable::contiguous(cache_seqlens);
  const int64_t rows = caches[0].size(0), row_slots = caches[0].size(1);
  check(block_table || rows == walks.batch, op, "caches", "have one row per request", rows);

  std::vector<CacheLayout> layouts;
  layouts.reserve(caches.size());
  for (const Tensor& cache : caches) {
    check(cache.dim() >= 2 && cache.size(0) == rows && cache.size(1) == row_slots, op, "caches",
          "have the same first two sizes", shape_string(cache));
    layouts.push_back(cache_layout(cache, op));
  }
  if (row_slots == 0) return;

  const auto compact = [&](const CacheLayout& cache, int64_t b) {
    const SlotMap slots{table.data<int32_t>() ? table.data<int32_t>() + b * table_length : nullptr,
                        b, rows, row_slots, table_length};
    const WalkOutputs walk = walks.outputs(b);
    for_moves(slots, walk.path, *walk.num_accepted, seqlens.const_data_ptr<int32_t>()[b],
              [&](int64_t from_row, int64_t from_place, int64_t to_row, int64_t to_place) {
                move_entry(cache, from_row, from_place, to_row, to_place);
              });
  };
  // paged requests may share a cache's blocks, but never the slots beyond their prefixes
  const int64_t entry = layouts[0].run_bytes * layouts[0].runs;
  const int64_t tasks = static_cast<int64_t>(layouts.size());
  constexpr int64_t kWorthThreads = 1 << 20;  // bytes
  if (tasks * walks.batch * entry * 4 < kWorthThreads) {
    for (const CacheLayout& cache : layouts) {
      for (int64_t b = 0; b < walks.batch; ++b) compact(cache, b);
    }
    return;
  }
  parallel_tasks(tasks, [&](int64_t, int64_t task) {
    for (int64_t b = 0; b < walks.batch; ++b) compact(layouts[task], b);
  });
}

}  // namespace dspark
