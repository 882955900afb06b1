// The group of one CPU thread with its vector registers, see common/group.h.

#pragma once

#include <math.h>

#include "common/group.h"
#include "cpu/kernels/math.h"
#include "cpu/kernels/simd.h"
#include "cpu/serial_group.h"

namespace dspark::DSPARK_ISA {

struct SimdGroup : SerialGroup {
  using Vector = Floats;
  using Mask = Ints;
  template <typename T>
  static constexpr bool kMatrixUnit = false;
  static constexpr int kWidth = kLanes, kStep = 1, kTile = 8, kSmallTile = 8, kLeastTeam = 1;
  static constexpr int kScan = 64;    // tokens compared in one go
  static constexpr int kExpand = 16;  // nodes expanded before the bar is raised

  template <typename T>
  static DSPARK_FORCE_INLINE Vector load(const T* from) {
    return DSPARK_ISA::load(from);
  }
  static DSPARK_FORCE_INLINE Vector load_own(const float* from) { return load(from); }
  template <typename T>
  static DSPARK_FORCE_INLINE Vector load_first(const T* from, int count) {
    return DSPARK_ISA::load_first(from, count);
  }
  template <typename T>
  static DSPARK_FORCE_INLINE void load_rows(const T* const (&rows)[kWidth], int k, int left,
                                            Vector (&block)[kWidth]) {
    DSPARK_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      block[i] = rows[i] == nullptr ? splat(0.0f) : load_some<SimdGroup>(rows[i] + k, left);
    }
  }
  template <typename T>
  static DSPARK_FORCE_INLINE float to_float(T value) {
    return DSPARK_ISA::to_float(value);
  }
  static DSPARK_FORCE_INLINE void prefetch(const void*) {}
  template <typename T>
  static DSPARK_FORCE_INLINE void copy_number(T* to, const T* from) {
    *to = *from;
  }
  static DSPARK_FORCE_INLINE void wait_for_packets() {}
  static DSPARK_FORCE_INLINE void store(float* to, Vector value) { DSPARK_ISA::store(to, value); }
  static DSPARK_FORCE_INLINE Vector splat(float value) { return DSPARK_ISA::splat(value); }
  using Step = const float*;
  static DSPARK_FORCE_INLINE Step load_step(const float* from) { return from; }
  static DSPARK_FORCE_INLINE Vector broadcast(Step step, int) { return broadcast32(step); }
  static DSPARK_FORCE_INLINE Vector exp(Vector x) { return DSPARK_ISA::exp(x); }
  static DSPARK_FORCE_INLINE Vector sigmoid(Vector x) {
    return splat(1.0f) / (splat(1.0f) + DSPARK_ISA::exp(-x));
  }
  static DSPARK_FORCE_INLINE Vector log(Vector x) { return DSPARK_ISA::log(x); }
  static DSPARK_FORCE_INLINE Vector select(Mask mask, Vector yes, Vector no) {
    return mask ? yes : no;
  }
  static DSPARK_FORCE_INLINE uint32_t bits(Mask mask) {
    return greater_bits(mask ? DSPARK_ISA::splat(1.0f) : Vector{}, Vector{});
  }
  static DSPARK_FORCE_INLINE float bits_float(uint32_t bits) { return load_as<float>(&bits); }

  static DSPARK_FORCE_INLINE Mask first_lanes(int count) {
    Mask mask;
    for (int i = 0; i < kLanes; ++i) mask[i] = i < count ? -1 : 0;
    return mask;
  }
  static DSPARK_FORCE_INLINE float fold_sum(Vector value) {
    for (int half = kLanes / 2; half > 0; half /= 2) value += exchange(value, half);
    return value[0];
  }
  static DSPARK_FORCE_INLINE float fold_max(Vector value) {
    for (int half = kLanes / 2; half > 0; half /= 2) {
      value = DSPARK_ISA::max(value, exchange(value, half));
    }
    return value[0];
  }
  // Lane i gets the value of lane i ^ distance.
  static DSPARK_FORCE_INLINE Vector exchange(Vector value, int distance) {
    Vector other;
    for (int i = 0; i < kLanes; ++i) other[i] = value[i ^ distance];
    return other;
  }

  static DSPARK_FORCE_INLINE void transpose(Vector (&block)[kWidth]) {
    DSPARK_ISA::transpose(block);
  }

  static DSPARK_FORCE_INLINE Vector gumbel(int64_t seed, int64_t position, int64_t token,
                                           Stream stream) {
    Words words;
    for (int block = 0; block < kLanes / 4; ++block) {
      const Philox four = dspark::noise_words(seed, position, token / 4 + block, stream);
      for (int i = 0; i < 4; ++i) words[block * 4 + i] = four.word[i];
    }
    return DSPARK_ISA::gumbel(words);
  }

  static DSPARK_FORCE_INLINE bool contains(const int64_t* values, int count, int64_t wanted) {
    if (count == kScan) {  // a loop of known length, which the compiler turns into vectors
      int64_t found = 0;
      for (int i = 0; i < kScan; ++i) found |= values[i] == wanted;
      return found != 0;
    }
    for (int i = 0; i < count; ++i) {
      if (values[i] == wanted) return true;
    }
    return false;
  }
};

}  // namespace dspark::DSPARK_ISA
