#include "cpu/compact.h"

#include <cstring>

#include "cpu/parallel.h"

namespace dspark {
namespace {

void move_entry(const CacheLayout& cache, int64_t from_row, int64_t from_place, int64_t to_row,
                int64_t to_place) {
  const char* from = cache.data + from_row * cache.row_stride + from_place * cache.slot_stride;
  char* to = cache.data + to_row * cache.row_stride + to_place * cache.slot_stride;
  for (int64_t run = 0; run < cache.runs; ++run) {
    std::memcpy(to + run * cache.run_stride, from + run * cache.run_stride, cache.run_bytes);
  }
}

}  // namespace

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
  parallel_tasks(tasks, [&](int64_t task) {
    for (int64_t b = 0; b < batch; ++b) compact(caches.layouts[task], b);
  });
}

}  // namespace dspark
