// The lanes of a Machine as a group of the shared templates, see csrc/common/group.h. The
// arithmetic is that of a CUDA thread (common/vector4.h); only the collectives differ.

#pragma once

#include <string.h>

#include "common/vector4.h"
#include "machine.h"

namespace lockstep {

constexpr int kMaxLanes = 64;

template <typename T>
struct Values {  // of the lanes, in their order
  T of[kMaxLanes];
  int count;

  // As a butterfly of shuffles does it.
  template <typename F>
  T fold(const F& f) {
    for (int step = count / 2; step > 0; step /= 2) {
      for (int i = 0; i < step; ++i) of[i] = f(of[i], of[i + step]);
    }
    return of[0];
  }
};

template <bool kTeam>
class Collectives {
 public:
  Collectives(Machine& machine, int lane) : machine_(&machine), lane_(lane) {}

  template <typename T>
  T min(T value) {
    return all(value, "min").fold([](T a, T b) { return b < a ? b : a; });
  }
  template <typename T>
  T max(T value) {
    return all(value, "max").fold([](T a, T b) { return b > a ? b : a; });
  }
  template <typename T>
  T sum(T value) {
    return all(value, "sum").fold([](T a, T b) { return a + b; });
  }

 protected:
  template <typename T>
  Values<T> all(T value, const char* collective) {
    uint64_t bits = 0, everyone[kMaxLanes];
    memcpy(&bits, &value, sizeof(T));
    machine_->exchange(lane_, kTeam ? lane_ / machine_->team_size() : -1, collective, bits,
                       everyone);
    Values<T> values;
    values.count = kTeam ? machine_->team_size() : machine_->lanes();
    for (int i = 0; i < values.count; ++i) memcpy(&values.of[i], &everyone[i], sizeof(T));
    return values;
  }

  Machine* machine_;
  int lane_;
};

class Team : public Collectives<true> {
 public:
  using Collectives::Collectives;
  int lane() const { return lane_ % size(); }
  int size() const { return machine_->team_size(); }
  int index() const { return lane_ / size(); }
  int count() const { return machine_->lanes() / size(); }
  template <typename T>
  T of(int lane, T value) {
    return all(value, "of").of[lane];
  }
  int scan(int value) {
    const Values<int> values = all(value, "scan");
    int before = 0;
    for (int i = 0; i < lane(); ++i) before += values.of[i];
    return before;
  }
};

class Group : public dspark::Vector4Lanes, public Collectives<false> {
 public:
  using Collectives::Collectives;
  int lane() const { return lane_; }
  int size() const { return machine_->lanes(); }
  void sync() { machine_->wait(lane_, -1, "sync"); }
  Team team() const { return {*machine_, lane_}; }
  int scan(int value, int* total) {
    const Values<int> values = all(value, "scan");
    int before = 0;
    *total = 0;
    for (int i = 0; i < size(); ++i) {
      if (i == lane_) before = *total;
      *total += values.of[i];
    }
    return before;
  }
  template <typename T, class Left, class Combine, class Put>
  void paired_product(int rows, int depth, const Left& left, const T* right, int right_pitch,
                      const Combine& combine, const Put& put) {
    for (int item = lane_; item < rows * depth / 2; item += size()) {
      const int f = item / (depth / 2), first = item % (depth / 2) * 2;
      Vector sums = splat(0.0f);
      for (int i = 0; i < 4; ++i) {
        const T* across = right + (first + i % 2 + i / 2 * depth) * right_pitch;
        for (int k = 0; k < depth; ++k) sums.lane[i] += to_float(left(f)[k]) * to_float(across[k]);
      }
      put(f, first, combine(f, first, left(f), sums));
    }
    sync();
  }
  template <typename T>
  void scaled_product(int rows, int depth, int columns, const float* in, int in_pitch,
                      const float* scale, float factor, const T* right, int right_pitch,
                      float* out) {
    for (int item = lane_; item < rows * columns; item += size()) {
      const int f = item / columns, j = item % columns;
      float sum = 0;
      for (int k = 0; k < depth; ++k) {
        sum += in[f * in_pitch + k] * scale[k] * to_float(right[j * right_pitch + k]);
      }
      out[item] = factor * sum;
    }
    sync();
  }
  int add(int* counter, int value) { return machine_->add(lane_, counter, value); }
  void lower(int* slot, int value) { machine_->lower(lane_, slot, value); }
  void set_bits(uint32_t* word, uint32_t bits) { machine_->set_bits(lane_, word, bits); }
  bool contains(const int64_t* values, int count, int64_t wanted) const {
    return Vector4Lanes::contains(values, count, size(), wanted);
  }
};

}  // namespace lockstep
