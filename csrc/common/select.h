// Selection and sorting of a few thousand items by keys of many digits.

#pragma once

#include "common/group.h"

namespace dspark {

constexpr int kDigitBits = 10, kBins = 1 << kDigitBits;
constexpr int kFew = 32;  // items that are sorted instead of counted digit by digit

struct SelectScratch {
  int histogram[kBins];
  int bin, before, inside, count;
};

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
    for (int j = team.lane(); j < count; j += team.size()) place += less(values[j], value);
    place = team.sum(place);
    if (team.lane() == 0) put(place, value);
  }
  g.sync();
}

// Calls take(item) for the `need` items of smallest key among items[0 .. count - 1]. digit(item, i)
// is digit i, below kBins, of an item's key; keys of `digits` digits are compared only as far as
// needed, and of equal ones any is taken. spare has room for `count` items; items is overwritten.
template <class G, class Digit, class Take>
DSPARK_HOST_DEVICE void select_smallest(G& g, int* items, int* spare, int count, int need,
                                        int digits, SelectScratch& scratch, const Digit& digit,
                                        const Take& take) {
  int place = 0;
  if (count > need && count > kFew) {
    for (int i = g.lane(); i < kBins; i += g.size()) scratch.histogram[i] = 0;
    g.sync();
  }
  for (; count > need && count > kFew && place < digits; ++place) {
    if (g.lane() == 0) scratch.count = 0;
    for (int i = g.lane(); i < count; i += g.size()) {
      g.add(&scratch.histogram[digit(items[i], place)], 1);
    }
    g.sync();
    // the bin in which the last of the needed items lies
    const int bins = (kBins + g.size() - 1) / g.size();
    const int first = g.lane() * bins;
    const int end = first + bins < kBins ? first + bins : kBins;
    int mine = 0, total;
    for (int i = first; i < end; ++i) mine += scratch.histogram[i];
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
      const int value = digit(items[i], place);
      if (value < bin) take(items[i]);
      if (value == bin) spare[g.add(&scratch.count, 1)] = items[i];
    }
    for (int i = g.lane(); i < kBins; i += g.size()) scratch.histogram[i] = 0;  // for the next one
    need -= scratch.before;
    count = scratch.inside;
    int* const swap = items;
    items = spare;
    spare = swap;
    g.sync();
  }
  if (count > need && place < digits) {
    const auto less = [&](int one, int other) {
      for (int i = place; i < digits; ++i) {
        const int left = digit(one, i), right = digit(other, i);
        if (left != right) return left < right;
      }
      return one < other;
    };
    sort(g, items, count, less, [&](int rank, int item) {
      if (rank < need) take(item);
    });
    return;
  }
  const int rest = count < need ? count : need;
  for (int i = g.lane(); i < rest; i += g.size()) take(items[i]);
  g.sync();
}

}  // namespace dspark
