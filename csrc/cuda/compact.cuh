// The walk down a tree and the move of its path's cache entries, in one launch.

#pragma once

#include <algorithm>
#include <vector>

#include "cpu/walk.h"
#include "cuda/group.cuh"
#include "cuda/launch.cuh"

namespace dspark {

constexpr int kCompactThreads = 256, kMaxCaches = 256;
constexpr int kInFlight = 8;  // entries that a thread loads before it stores the first
static_assert(kCompactThreads >= kMaxNodes, "one thread per node of the path");

// Caches of one layout, in packets.
struct CacheTable {
  char* data[kMaxCaches];
  int count;
  int64_t row_stride, slot_stride, run_stride;  // bytes
  int64_t run_packets, packets;                 // of a run and of a slot's whole entry
};

struct MoveList {
  int next[kMaxNodes];
  int32_t path[kMaxNodes];
  int64_t from[kMaxNodes], to[kMaxNodes];  // bytes from a cache's start
};

// Walks, or reads the path that an earlier kernel wrote; returns the number of nodes in list.path.
template <bool kWalk, class G>
__device__ int find_path(G& g, const WalkBatch& walks, int64_t request, MoveList& list) {
  const WalkOutputs out = walks.outputs(request);
  if constexpr (!kWalk) {
    for (int i = g.lane(); i <= walks.depth_limit(); i += g.size()) list.path[i] = out.path[i];
    g.sync();
    return *out.num_accepted;
  }
  const TreeView tree = walks.tree(request);
  const int64_t* target = walks.target + request * walks.nodes;
  const int count = accept_walk(g, tree, target, walks.depth_limit(), list.next, list.path);
  if (blockIdx.y == 0) write_walk(g, tree, target, walks.max_depth, list.path, count, out);
  return count;
}

// Lists the moves of a path, in ascending order; returns how many.
template <class G>
__device__ int list_moves(G& g, const SlotBatch& slots, const CacheTable& caches, int64_t request,
                          int count, MoveList& list) {
  const SlotMap map = slots.slots(request);
  const int64_t seqlen = slots.seqlens[request];
  const int i = g.lane();
  int64_t from_row, from_place, to_row, to_place;
  const bool moves = i < count && list.path[i] != i &&
                     map.find(seqlen + list.path[i], &from_row, &from_place) &&
                     map.find(seqlen + i, &to_row, &to_place);
  int total;
  const int place = g.scan(moves, &total);
  if (moves) {
    list.from[place] = from_row * caches.row_stride + from_place * caches.slot_stride;
    list.to[place] = to_row * caches.row_stride + to_place * caches.slot_stride;
  }
  g.sync();
  return total;
}

// Block (request, slice): every slice repeats the walk and moves its packets of all caches. A slot
// moves down, and a thread moves one packet of every slot in ascending order: nothing is
// overwritten before it was read.
template <typename Packet, bool kWalk>
__global__ __launch_bounds__(kCompactThreads) void compact_kernel(
    const __grid_constant__ WalkBatch walks, const __grid_constant__ SlotBatch slots,
    const __grid_constant__ CacheTable caches) {
  using Group = BlockGroup<kCompactThreads>;
  __shared__ MoveList list;
  __shared__ Group::Scratch group_scratch;
  Group group(group_scratch);
  const int64_t request = blockIdx.x;
  const int count = find_path<kWalk>(group, walks, request, list);
  if (caches.count == 0) return;
  const int moves = list_moves(group, slots, caches, request, count, list);
  if (moves == 0) return;

  const int64_t columns = caches.count * caches.packets;
  const int64_t step = static_cast<int64_t>(gridDim.y) * kCompactThreads;
  for (int64_t i = blockIdx.y * kCompactThreads + threadIdx.x; i < columns; i += step) {
    const int64_t cache = i / caches.packets, packet = i % caches.packets;
    char* data = caches.data[cache] + packet / caches.run_packets * caches.run_stride +
                 packet % caches.run_packets * sizeof(Packet);
    for (int first = 0; first < moves; first += kInFlight) {
      Packet packets[kInFlight];
      DSPARK_UNROLL
      for (int k = 0; k < kInFlight; ++k) {
        if (first + k < moves) {
          packets[k] = *reinterpret_cast<const Packet*>(data + list.from[first + k]);
        }
      }
      DSPARK_UNROLL
      for (int k = 0; k < kInFlight; ++k) {
        if (first + k < moves) *reinterpret_cast<Packet*>(data + list.to[first + k]) = packets[k];
      }
    }
  }
}

inline bool same_layout(const CacheLayout& a, const CacheLayout& b) {
  return a.row_stride == b.row_stride && a.slot_stride == b.slot_stride &&
         a.run_bytes == b.run_bytes && a.runs == b.runs && a.run_stride == b.run_stride;
}

// The largest of 16, 4 and 1 bytes that all accesses can have.
inline int packet_bytes(const CacheLayout& layout, const CacheTable& table) {
  uint64_t all = layout.row_stride | layout.slot_stride | layout.run_bytes | layout.run_stride;
  for (int i = 0; i < table.count; ++i) all |= reinterpret_cast<uintptr_t>(table.data[i]);
  return all % 16 == 0 ? 16 : all % 4 == 0 ? 4 : 1;
}

template <bool kWalk>
void launch_compaction(const WalkBatch& walks, int64_t batch, const SlotBatch& slots,
                       const CacheTable& table, int packet, cudaStream_t stream, const char* op) {
  const auto kernel = packet == 16  ? compact_kernel<uint4, kWalk>
                      : packet == 4 ? compact_kernel<uint32_t, kWalk>
                                    : compact_kernel<uint8_t, kWalk>;
  constexpr int64_t kEnoughBlocks = 2048;  // several per multiprocessor of any GPU
  const int64_t needed = (table.count * table.packets + kCompactThreads - 1) / kCompactThreads;
  const int64_t slices =
      std::clamp<int64_t>(needed, 1, std::max(kEnoughBlocks / batch, int64_t{1}));
  const dim3 grid(static_cast<unsigned>(batch), static_cast<unsigned>(slices));
  kernel<<<grid, kCompactThreads, 0, stream>>>(walks, slots, table);
  check_cuda(cudaGetLastError(), op);
}

// One launch for all caches of one layout. With kWalk the first one writes the outputs of the walk.
template <bool kWalk>
void compact_on_device(const WalkBatch& walks, int64_t batch, const Caches& caches,
                       cudaStream_t stream, const char* op) {
  std::vector<CacheLayout> left = caches.layouts;
  if (left.empty() && kWalk) {
    launch_compaction<kWalk>(walks, batch, caches.slots, CacheTable{}, 16, stream, op);
  }
  while (!left.empty()) {
    const CacheLayout layout = left.front();
    CacheTable table{};
    std::vector<CacheLayout> others;
    for (const CacheLayout& cache : left) {
      if (table.count < kMaxCaches && same_layout(cache, layout)) {
        table.data[table.count++] = cache.data;
      } else {
        others.push_back(cache);
      }
    }
    left.swap(others);
    const int packet = packet_bytes(layout, table);
    table.row_stride = layout.row_stride, table.slot_stride = layout.slot_stride;
    table.run_stride = layout.run_stride;
    table.run_packets = layout.run_bytes / packet, table.packets = table.run_packets * layout.runs;
    if (table.packets == 0) table.count = 0;
    launch_compaction<kWalk>(walks, batch, caches.slots, table, packet, stream, op);
  }
}

}  // namespace dspark
