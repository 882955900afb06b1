// Sharing tasks among as many threads as torch uses.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/pool.h"

namespace dspark {

inline int64_t num_workers(int64_t tasks) {
  return std::clamp<int64_t>(tasks, 1, torch::stable::get_num_threads());
}

// How many of `columns` one task takes: whole tiles, at most 64 tasks. It depends on the shape
// alone, so that no result depends on the number of threads.
inline int64_t columns_per_task(int64_t columns, int64_t tile) {
  constexpr int64_t kMaxTasks = 64;
  const int64_t tiles = (columns + tile - 1) / tile;
  return (tiles + kMaxTasks - 1) / kMaxTasks * tile;
}

// Calls f(worker) in up to so many threads, see share_work.
template <typename F>
void in_workers(int64_t workers, const F& f) {
  const auto body = [](void* context, int64_t worker) {
    (*static_cast<const F*>(context))(worker);
  };
  share_work(workers, body, const_cast<F*>(&f));
}

// Calls f(worker, task) once for every task; a worker takes the next task when it is free, so one
// worker's tasks come in ascending order. 0 <= worker < workers, whatever the number of threads is
// by now: memory per worker is sized by the same number. f must not throw.
template <typename F>
void parallel_tasks(int64_t tasks, int64_t workers, const F& f) {
  std::atomic<int64_t> next{0};
  in_workers(workers, [&](int64_t worker) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      f(worker, task);
    }
  });
}

// Calls f(task), which needs no memory of a worker's.
template <typename F>
void parallel_tasks(int64_t tasks, const F& f) {
  parallel_tasks(tasks, num_workers(tasks), [&](int64_t, int64_t task) { f(task); });
}

// The same for tasks over the columns of one matrix: a worker takes neighbours together, fewer and
// fewer of them, a part of those that are left. What a task prefetches after its end is then mostly
// its own next one's.
template <typename F>
void parallel_runs(int64_t tasks, const F& f) {
  const int64_t workers = num_workers(tasks);
  std::atomic<int64_t> next{0};
  in_workers(workers, [&](int64_t) {
    for (int64_t begin = next.load(std::memory_order_relaxed); begin < tasks;) {
      const int64_t end = begin + std::max<int64_t>((tasks - begin) / (2 * workers), 1);
      if (!next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
      for (int64_t task = begin; task < end; ++task) f(task);
      begin = next.load(std::memory_order_relaxed);
    }
  });
}

}  // namespace dspark
