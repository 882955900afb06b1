// The group of one CPU thread, see common/group.h.

#pragma once

#include <string.h>

#include "common/group.h"

namespace dspark {

struct SerialGroup {
  DSPARK_FORCE_INLINE int lane() const { return 0; }
  DSPARK_FORCE_INLINE int size() const { return 1; }
  DSPARK_FORCE_INLINE int index() const { return 0; }
  DSPARK_FORCE_INLINE int count() const { return 1; }
  DSPARK_FORCE_INLINE void sync() const {}
  template <typename T>
  DSPARK_FORCE_INLINE T min(T value) const {
    return value;
  }
  template <typename T>
  DSPARK_FORCE_INLINE T max(T value) const {
    return value;
  }
  template <typename T>
  DSPARK_FORCE_INLINE T sum(T value) const {
    return value;
  }
  DSPARK_FORCE_INLINE int scan(int value, int* total) const {
    *total = value;
    return 0;
  }
  DSPARK_FORCE_INLINE int add(int* counter, int value) const {
    const int before = *counter;
    *counter += value;
    return before;
  }
  DSPARK_FORCE_INLINE void lower(int* slot, int value) const {
    if (value < *slot) *slot = value;
  }
  DSPARK_FORCE_INLINE void set_bits(uint32_t* word, uint32_t bits) const { *word |= bits; }
  static DSPARK_FORCE_INLINE uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
  }
  DSPARK_FORCE_INLINE SerialGroup team() const { return {}; }
};

}  // namespace dspark
