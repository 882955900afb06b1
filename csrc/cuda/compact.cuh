// The walk down a tree and the move of its path's cache entries, in one launch.

#pragma once

#include <algorithm>

#include "common/compact.h"
#include "cuda/group.cuh"
#include "cuda/launch.cuh"

namespace dspark {

constexpr int kCompactThreads = 256;
constexpr int kCompactBlocks = 3;  // per multiprocessor; for four of them ptxas spills

// Block (request, slice): every slice repeats the walk, and moves its part of all caches; then the
// first one writes what came of the walk.
template <int kBytes, bool kWalk>
__global__ __launch_bounds__(kCompactThreads, kCompactBlocks) void compact_kernel(
    const __grid_constant__ WalkBatch walks, const __grid_constant__ SlotBatch slots,
    const __grid_constant__ CacheTable caches) {
  using Group = BlockGroup<kCompactThreads>;
  __shared__ MoveList list;
  __shared__ Group::Scratch group_scratch;
  Group group(group_scratch);
  const int64_t request = blockIdx.x;
  const int slice = blockIdx.y, slices = gridDim.y;
  const int64_t seqlen = slots.seqlens[request];  // on its way while the block waits for the walk
  const int count =
      kWalk ? find_path(group, walks, request, list) : read_path(group, walks, request, list);
  if (caches.count > 0) {
    const int moves = list_moves(group, slots, caches, request, seqlen, count, list);
    move_entries<kBytes>(group, caches, list, moves, slice, slices);
  }
  if (kWalk && slice == 0) write_path(group, walks, request, count, list);
}

template <bool kWalk>
void launch_compaction(const WalkBatch& walks, int64_t batch, const SlotBatch& slots,
                       const CacheTable& table, cudaStream_t stream, const char* op) {
  const auto kernel = table.packet_bytes == 16  ? compact_kernel<16, kWalk>
                      : table.packet_bytes == 4 ? compact_kernel<4, kWalk>
                                                : compact_kernel<1, kWalk>;
  constexpr int64_t kEnoughBlocks = 2048;  // several per multiprocessor of any GPU
  const int64_t needed = (table.count * table.packets + kCompactThreads - 1) / kCompactThreads;
  const int64_t slices =
      std::clamp<int64_t>(needed, 1, std::max(kEnoughBlocks / batch, int64_t{1}));
  const dim3 grid(static_cast<unsigned>(batch), static_cast<unsigned>(slices));
  kernel<<<grid, kCompactThreads, 0, stream>>>(walks, slots, table);
  check_cuda(cudaGetLastError(), op);
}

// One launch for all caches of one layout. With kWalk each repeats the walk, and there is at least
// one; else the path was written before.
template <bool kWalk>
void compact_on_device(const WalkBatch& walks, int64_t batch, const Caches& caches,
                       cudaStream_t stream, const char* op) {
  std::vector<CacheTable> tables = cache_tables(caches.layouts);
  if (kWalk && tables.empty()) tables.push_back(CacheTable{});
  for (const CacheTable& table : tables) {
    launch_compaction<kWalk>(walks, batch, caches.slots, table, stream, op);
  }
}

}  // namespace dspark
