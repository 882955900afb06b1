// Selection and sorting of a few thousand items by keys of many digits.

#pragma once

#include "common/group.h"

namespace dspark {

constexpr int kDigitBits = 10, kBins = 1 << kDigitBits;
constexpr int kFew = 32;  // items that are sorted instead of counted digit by digit

struct SelectScratch {
  int histogram[kBins];
  uint64_t few[kFew];
  int bin, before, inside, count;
};

// Without a sync at the end.
template <class G>
DSPARK_HOST_DEVICE void clear(G& g, SelectScratch& scratch) {
  for (int i = g.lane(); i < kBins; i += g.size()) scratch.histogram[i] = 0;
}

// Calls put(place, value) for values[0 .. count - 1] in the order of less, a strict one. A single
// member sorts by insertion; of several, each counts for some values which others come before.
template <class G, typename T, class Less, class Put>
DSPARK_HOST_DEVICE void sort(G& g, T* values, int count, const Less& less, const Put& put) {
  if (g.size() == 1) {
    for (int i = 1; i < count; ++i) {
      const T value = values[i];
      int place = i;
      for (; place > 0 && less(value, values[place - 1]); --place)
        values[place] = values[place - 1];
      values[place] = value;
    }
    for (int i = 0; i < count; ++i) put(i, values[i]);
    return;
  }
  auto team = g.team();
  for (int i = team.index(); i < count; i += team.count()) {
    const T value = values[i];
    int place = 0;
    DSPARK_SIDE_BY_SIDE(4)
    for (int j = team.lane(); j < count; j += team.size()) place += less(values[j], value);
    place = team.sum(place);
    if (team.lane() == 0) put(place, value);
  }
  g.sync();
}

// Calls take(item) for the `need` items of smallest key among items[0 .. count - 1]. lead(item) is
// the first 32 bits of an item's key, digit(item, i) its digit i, below kBins; keys of `digits`
// digits are compared only as far as needed, and of equal ones any is taken. scratch.histogram
// holds the counts of the first digits. spare has room for `count` items; items is overwritten.
template <class G, class Lead, class Digit, class Take>
DSPARK_HOST_DEVICE void select_smallest(G& g, int* items, int* spare, int count, int need,
                                        int digits, SelectScratch& scratch, const Lead& lead,
                                        const Digit& digit, const Take& take) {
  int place = 0;
  while (count > need && count > kFew && place < digits) {
    // the bin in which the last of the needed items lies
    const int bins = (kBins + g.size() - 1) / g.size();
    const int first = g.lane() * bins;
    const int end = first + bins < kBins ? first + bins : kBins;
    int mine = 0, total;
    for (int i = first; i < end; ++i) mine += scratch.histogram[i];
    if (g.lane() == 0) scratch.count = 0;
    int before = g.scan(mine, &total);
    if (before < need && need <= before + mine) {
      int bin = first;
      while (before + scratch.histogram[bin] < need) before += scratch.histogram[bin++];
      scratch.bin = bin;
      scratch.before = before;
      scratch.inside = scratch.histogram[bin];
    }
    g.sync();
    const int bin = scratch.bin;
    for (int i = g.lane(); i < count; i += g.size()) {
      const int item = items[i], value = digit(item, place);
      if (value < bin) take(item);
      if (value == bin) spare[g.add(&scratch.count, 1)] = item;
    }
    need -= scratch.before;
    count = scratch.inside;
    int* const swap = items;
    items = spare;
    spare = swap;
    const bool more = count > need && count > kFew && ++place < digits;
    if (more) clear(g, scratch);
    g.sync();
    if (!more) break;
    for (int i = g.lane(); i < count; i += g.size()) {
      g.add(&scratch.histogram[digit(items[i], place)], 1);
    }
    g.sync();
  }
  if (count > need && place < digits) {
    for (int i = g.lane(); i < count; i += g.size()) {
      scratch.few[i] = uint64_t{lead(items[i])} << 32 | static_cast<uint32_t>(items[i]);
    }
    g.sync();
    const auto less = [&](uint64_t a, uint64_t b) {
      if (a >> 32 != b >> 32 || a == b) return a < b;
      const int one = static_cast<int>(a), other = static_cast<int>(b);
      for (int i = 0; i < digits; ++i) {
        const int left = digit(one, i), right = digit(other, i);
        if (left != right) return left < right;
      }
      return a < b;
    };
    sort(g, scratch.few, count, less, [&](int rank, uint64_t value) {
      if (rank < need) take(static_cast<int>(value));
    });
    return;
  }
  const int rest = count < need ? count : need;
  for (int i = g.lane(); i < rest; i += g.size()) take(items[i]);
  g.sync();
}

}  // namespace dspark
