// The tree algorithms are written once, for a *group* G of members that work together on one
// request: one CPU thread, a warp, or a CUDA block. A group has
//
//   int lane(), int size()       which member this is, and how many there are
//   void sync()                  what any member wrote is visible to all
//   T min(T), T max(T)           over all members, the result in all of them
//   int scan(int n, int* total)  the sum over the members before this one, and over all
//   int add(int* counter, int n) atomic; returns the value before
//   void lower(int* slot, int n) atomic; *slot becomes n if that is less
//   void set_bits(uint32_t* word, uint32_t bits)   atomic
//   Team team()                  a part of the group with lane, size, min, max, sum of its own, and
//                                index() and count(): a warp of a block; else the group itself;
//                                with a matrix unit also of(i, value), what its lane i holds, and
//                                with whole levels (kExpand) scan(n), the sum over lanes before
//   uint32_t float_bits(float)
//
// All members call the collectives (sync, min, max, scan) together. Variables are a member's own;
// what is shared lies behind pointers, in scratch memory that the caller provides. Groups that do
// arithmetic on rows of floats (SimdGroup in the templates) also have
//
//   Vector, kWidth               that many floats; conditions on Vectors are Masks
//   Vector load(const T*), load_first(const T*, n), splat(float)
//   Vector load_own(const float*)   from the workspace, at a multiple of kWidth
//   void load_rows(const T* const rows[kWidth], int k, int left, Vector block[kWidth])
//                                numbers k .. k + kWidth - 1 of each row, k a multiple of kWidth;
//                                zeros for a null row and beyond the first `left`
//   void prefetch(const void*), void store(float*, Vector)
//   Step load_step(const float*), Vector broadcast(Step, i)   kStep floats, one of them everywhere
//   Vector exp(Vector), log(Vector), sigmoid(Vector), select(Mask, Vector, Vector)
//   uint32_t bits(Mask)          one bit per float
//   float fold_sum(Vector), fold_max(Vector)
//   void transpose(Vector block[kWidth])
//   Mask first_lanes(n)          true for the first n floats
//   float bits_float(uint32_t)
//   kExpand                      nodes of a tree expanded at once
//   kTile, kSmallTile            rows of a product that a member computes at once, and where these
//                                are too few members' work
//   bool contains(const int64_t* values, n, wanted)   among n <= kScan, size() apart
//   Vector gumbel(seed, position, token, stream)   for kWidth tokens from a multiple of kWidth on
//   copy_number(T* to, const T* from)   there for the member itself after wait_for_packets()
//   kMatrixUnit<T>               whether there is one for T; then also copy_packet(T* to, const T*
//                                from), 16 bytes, zeros from null, likewise;
//                                paired_product(rows, depth, left, right, right_pitch, combine,
//                                put): of out = in · rightᵀ, left(f) the row f of in and right
//                                [2 depth][depth], it calls put(f, k, combine(f, k, left(f),
//                                {out[f][k], [k + 1], [depth + k], [depth + k + 1]})) for even
//                                k < depth, a multiple of 16; ends with a sync;
//                                scaled_product(rows, depth, columns, in, in_pitch, scale, factor,
//                                right, right_pitch, out): out = factor · (in · diag(scale)) ·
//                                rightᵀ of floats in, to their precision; otherwise the same
//   kLeastTeam                   the size of a team, or less
//
// No torch in here, and no function without G among its template parameters: the CPU instantiates
// them once per instruction set.

#pragma once

#include <stdint.h>

#include "common/noise.h"

// SIDE_BY_SIDE: so many rounds of a loop, whose loads and sums wait for each other in one thread of
// many; a CPU's core overlaps them by itself.
#if defined(__CUDA_ARCH__)
#define DSPARK_UNROLL _Pragma("unroll")
#define DSPARK_PRAGMA(text) _Pragma(#text)
#define DSPARK_SIDE_BY_SIDE(count) DSPARK_PRAGMA(unroll count)
#elif defined(__CUDACC__)
#define DSPARK_UNROLL
#define DSPARK_SIDE_BY_SIDE(count)
#else
#define DSPARK_UNROLL _Pragma("GCC unroll 16")
#define DSPARK_SIDE_BY_SIDE(count)
#endif

namespace dspark {

constexpr int kMaxNodes = 256, kMaxHeads = 16, kMaxCandidates = 64, kMaxRank = 256;
constexpr int kMaxPaths = 16, kMaxPathLength = 64, kMaxNgram = 16;

DSPARK_FORCE_INLINE int count_bits(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __popc(bits);
#else
  return __builtin_popcount(bits);
#endif
}

DSPARK_FORCE_INLINE int lowest_bit(uint32_t bits) { return count_bits(~bits & (bits - 1)); }

// Two numbers at once.
template <typename T>
struct alignas(2 * sizeof(T)) Two {
  T of[2];
};
template <typename T>
DSPARK_FORCE_INLINE Two<T> load_two(const T* from) {
  return *reinterpret_cast<const Two<T>*>(from);
}
DSPARK_FORCE_INLINE void store_two(float* to, Two<float> value) {
  *reinterpret_cast<Two<float>*>(to) = value;
}

// The first `left` of kWidth numbers, zeros for the others.
template <class G, typename T>
DSPARK_HOST_DEVICE typename G::Vector load_some(const T* from, int left) {
  if (left >= G::kWidth) return G::load(from);
  return left <= 0 ? G::splat(0.0f) : G::load_first(from, left);
}

}  // namespace dspark
