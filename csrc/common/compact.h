// The move of a path's cache entries by a whole group, and its parameters.

#pragma once

#include <vector>

#include "common/unit.h"
#include "common/walk.h"
#include "common/walk_arguments.h"

namespace dspark {

constexpr int kMaxCaches = 256;
constexpr int kInFlight = 8;  // entries that a member loads before it stores the first

// Caches of one layout, cut into packets.
struct CacheTable {
  char* data[kMaxCaches];
  int count, packet_bytes;
  int64_t row_stride, slot_stride, run_stride;  // bytes
  int64_t run_packets, packets;                 // of a run and of a slot's whole entry
};

struct MoveList {
  int next[kMaxNodes];
  int32_t path[kMaxNodes];
  int64_t from[kMaxNodes], to[kMaxNodes];  // bytes from a cache's start
};

// Walks; list.path[0 .. count - 1] is the path.
template <class G>
DSPARK_HOST_DEVICE int find_path(G& g, const WalkBatch& walks, int64_t request, MoveList& list) {
  return accept_walk(g, walks.tree(request), walks.target + request * walks.nodes,
                     walks.depth_limit(), list.next, list.path);
}

// Writes what came of the walk.
template <class G>
DSPARK_HOST_DEVICE void write_path(G& g, const WalkBatch& walks, int64_t request, int count,
                                   const MoveList& list) {
  write_walk(g, walks.tree(request), walks.target + request * walks.nodes, walks.max_depth,
             list.path, count, walks.outputs(request));
}

// The path that an earlier kernel wrote.
template <class G>
DSPARK_HOST_DEVICE int read_path(G& g, const WalkBatch& walks, int64_t request, MoveList& list) {
  const WalkOutputs out = walks.outputs(request);
  for (int i = g.lane(); i <= walks.depth_limit(); i += g.size()) list.path[i] = out.path[i];
  g.sync();
  return *out.num_accepted;
}

// Lists the moves of a path behind `seqlen` slots, in ascending order; returns how many.
template <class G>
DSPARK_HOST_DEVICE int list_moves(G& g, const SlotBatch& slots, const CacheTable& caches,
                                  int64_t request, int64_t seqlen, int count, MoveList& list) {
  const SlotMap map = slots.slots(request);
  int moves = 0;
  for (int first = 0; first < count; first += g.size()) {
    const int i = first + g.lane();
    int64_t from_row, from_place, to_row, to_place;
    const bool move = i < count && list.path[i] != i &&
                      map.find(seqlen + list.path[i], &from_row, &from_place) &&
                      map.find(seqlen + i, &to_row, &to_place);
    int total;
    const int place = moves + g.scan(move, &total);
    if (move) {
      list.from[place] = from_row * caches.row_stride + from_place * caches.slot_stride;
      list.to[place] = to_row * caches.row_stride + to_place * caches.slot_stride;
    }
    moves += total;
  }
  g.sync();
  return moves;
}

template <int kBytes, typename Index, class G>
DSPARK_HOST_DEVICE void move_columns(G& g, const CacheTable& caches, const MoveList& list,
                                     int moves, int slice, int slices) {
  using Piece = Unit<kBytes>;
  const Index packets = static_cast<Index>(caches.packets), columns = caches.count * packets;
  const Index run_packets = static_cast<Index>(caches.run_packets);
  const Index step = static_cast<Index>(slices) * g.size();
  for (Index i = static_cast<Index>(slice) * g.size() + g.lane(); i < columns; i += step) {
    const Index packet = i % packets;
    char* data = caches.data[i / packets] + packet / run_packets * caches.run_stride +
                 int64_t{kBytes} * (packet % run_packets);
    for (int first = 0; first < moves; first += kInFlight) {
      Piece pieces[kInFlight];
      DSPARK_UNROLL
      for (int k = 0; k < kInFlight; ++k) {
        if (first + k < moves) {
          pieces[k] = *reinterpret_cast<const Piece*>(data + list.from[first + k]);
        }
      }
      DSPARK_UNROLL
      for (int k = 0; k < kInFlight; ++k) {
        if (first + k < moves) *reinterpret_cast<Piece*>(data + list.to[first + k]) = pieces[k];
      }
    }
  }
}

// Moves one slice of the packets of all caches. Slots move down, and a member moves one packet of
// every slot in ascending order, so that nothing is overwritten before it was read.
template <int kBytes, class G>
DSPARK_HOST_DEVICE void move_entries(G& g, const CacheTable& caches, const MoveList& list,
                                     int moves, int slice, int slices) {
  // a GPU divides 64-bit numbers by a function call
  if (caches.count * caches.packets <= INT32_MAX) {
    move_columns<kBytes, uint32_t>(g, caches, list, moves, slice, slices);
  } else {
    move_columns<kBytes, uint64_t>(g, caches, list, moves, slice, slices);
  }
}

// --- on the host -------------------------------------------------------------------------------

inline bool same_layout(const CacheLayout& a, const CacheLayout& b) {
  return a.row_stride == b.row_stride && a.slot_stride == b.slot_stride &&
         a.run_bytes == b.run_bytes && a.runs == b.runs && a.run_stride == b.run_stride;
}

// The tables of all caches, one for each layout (and for each kMaxCaches); the largest packets, of
// 16, 4 or 1 bytes, that all addresses allow.
inline std::vector<CacheTable> cache_tables(std::vector<CacheLayout> left) {
  std::vector<CacheTable> tables;
  while (!left.empty()) {
    const CacheLayout layout = left.front();
    CacheTable table{};
    std::vector<CacheLayout> others;
    uint64_t addresses =
        layout.row_stride | layout.slot_stride | layout.run_bytes | layout.run_stride;
    for (const CacheLayout& cache : left) {
      if (table.count < kMaxCaches && same_layout(cache, layout)) {
        table.data[table.count++] = cache.data;
        addresses |= reinterpret_cast<uintptr_t>(cache.data);
      } else {
        others.push_back(cache);
      }
    }
    left.swap(others);
    table.packet_bytes = packet_bytes(addresses);
    table.row_stride = layout.row_stride, table.slot_stride = layout.slot_stride;
    table.run_stride = layout.run_stride;
    table.run_packets = layout.run_bytes / table.packet_bytes;
    table.packets = table.run_packets * layout.runs;
    if (table.packets > 0) tables.push_back(table);
  }
  return tables;
}

}  // namespace dspark
