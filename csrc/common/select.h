// Items by keys of 60 bits: sorting few, and what tells where the N smallest of many end.

#pragma once

#include "common/group.h"

namespace dspark {

constexpr int kDigitBits = 10, kBins = 1 << kDigitBits, kDigits = 6;

struct SelectScratch {
  int histogram[kBins];
  int bin, before, inside;  // see find_bin
};

// Digit `place` of a key; the first one decides.
DSPARK_FORCE_INLINE int digit_shift(int place) { return kDigitBits * (kDigits - 1 - place); }
DSPARK_FORCE_INLINE int digit_of(uint64_t key, int place) {
  return static_cast<int>(key >> digit_shift(place)) & (kBins - 1);
}

// Without a sync at the end.
template <class G>
DSPARK_HOST_DEVICE void clear(G& g, SelectScratch& scratch) {
  for (int i = g.lane(); i < kBins; i += g.size()) scratch.histogram[i] = 0;
}

// The bin in which the item number `need` lies, counted from one; `before` are in lower bins and
// `inside` in this one. There are as many items.
template <class G>
DSPARK_HOST_DEVICE void find_bin(G& g, int need, SelectScratch& scratch) {
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
}

// Sorts by insertion, for one member.
template <class G>
DSPARK_HOST_DEVICE void insertion_sort(G&, uint64_t* values, int count) {
  for (int i = 1; i < count; ++i) {
    const uint64_t value = values[i];
    int place = i;
    for (; place > 0 && value < values[place - 1]; --place) values[place] = values[place - 1];
    values[place] = value;
  }
}

// The value which `place` others come before, for one member: quickselect.
template <class G>
DSPARK_HOST_DEVICE uint64_t value_at(G&, uint64_t* values, int count, int place) {
  for (int first = 0, last = count - 1; first < last;) {
    const uint64_t pivot = values[(first + last) / 2];
    int i = first, j = last;
    while (i <= j) {
      while (values[i] < pivot) ++i;
      while (pivot < values[j]) --j;
      if (i > j) break;
      const uint64_t swap = values[i];
      values[i++] = values[j];
      values[j--] = swap;
    }
    if (place > j && place < i) break;
    place <= j ? last = j : first = i;
  }
  return values[place];
}

// Calls put(team, place, value) for the distinct values[0 .. count - 1], the smallest first. A
// single member sorts by insertion; of several, each team counts for some values which others come
// before, and all of its members call put.
template <class G, class Put>
DSPARK_HOST_DEVICE void sort(G& g, uint64_t* values, int count, const Put& put) {
  if (g.size() == 1) {
    insertion_sort(g, values, count);
    for (int i = 0; i < count; ++i) put(g.team(), i, values[i]);
    return;
  }
  auto team = g.team();
  for (int i = team.index(); i < count; i += team.count()) {
    const uint64_t value = values[i];
    int place = 0;
    DSPARK_SIDE_BY_SIDE(4)
    for (int j = team.lane(); j < count; j += team.size()) place += values[j] < value;
    put(team, team.sum(place), value);
  }
  g.sync();
}

}  // namespace dspark
