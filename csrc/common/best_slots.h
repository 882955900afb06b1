// Which nodes of a batch's trees a pass runs over: the best of all requests together, for
// `best_slots`.

#pragma once

#include <math.h>

#include "common/select.h"

namespace dspark {

struct BestSlots {      // all requests
  const float* scores;  // [B, nodes]
  int64_t stride;
  const int32_t *num_nodes, *lengths, *limit;  // [B]
  const uint8_t* done;                         // [B]
  int batch, nodes, total;                     // 1 <= total <= batch · nodes
  int64_t* slots;                              // [total]
  int64_t* rows;                               // [B, nodes]
  int32_t* counts;                             // [B]
};

// The key of a slot is its priority in the upper bits, highest first. Equal ones come in the order
// of the slots.
constexpr uint32_t kHighest = INT32_MAX;  // above the bits of all floats from 0 to infinity
constexpr int kPriorityBits = 31, kPriorityDigits = (kPriorityBits + kDigitBits - 1) / kDigitBits;

template <class G>
DSPARK_HOST_DEVICE uint64_t slot_key(const BestSlots& p, int slot) {
  const int b = static_cast<int>(static_cast<uint32_t>(slot) / static_cast<uint32_t>(p.nodes));
  const int n = slot - b * p.nodes;
  const int64_t left = int64_t{p.limit[b]} - p.lengths[b];
  const bool goes_on = left > 0 && p.done[b] == 0;
  const float weight = goes_on ? sqrtf(static_cast<float>(left)) : 0.0f;
  const float priority = n > 0 ? p.scores[b * p.stride + n] * weight : goes_on ? INFINITY : 0.0f;
  const uint32_t bits = priority > 0 ? G::float_bits(priority) : 0;
  return uint64_t{kHighest - bits} << (kDigits * kDigitBits - kPriorityBits);
}

// One group for the whole batch.
template <class G>
DSPARK_HOST_DEVICE void choose_slots(G& g, const BestSlots& p, SelectScratch& scratch) {
  const int all = p.batch * p.nodes;
  // the first digits of the key at which the kept slots end, and how many have lower ones
  uint64_t digits = 0;
  int place = 0, better = 0;
  for (;; ++place) {
    clear(g, scratch);
    g.sync();
    for (int slot = g.lane(); slot < all; slot += g.size()) {
      const uint64_t key = slot_key<G>(p, slot);
      if (key >> digit_shift(place) >> kDigitBits != digits) continue;
      g.add(&scratch.histogram[digit_of(key, place)], 1);
    }
    g.sync();
    find_bin(g, p.total - better, scratch);
    digits = digits << kDigitBits | static_cast<uint64_t>(scratch.bin);
    better += scratch.before;
    if (better + scratch.inside == p.total || place == kPriorityDigits - 1) break;
  }
  const int room = p.total - better;  // for slots with these digits, of which the first are kept

  int before = 0, ties = 0;  // better slots, and those with these digits, before the tile
  for (int first = 0; first < all; first += g.size()) {
    const int slot = first + g.lane();
    const uint64_t own = slot < all ? slot_key<G>(p, slot) >> digit_shift(place) : UINT64_MAX;
    const bool better_one = own < digits, tie = own == digits;
    int sums;  // of two numbers, each at most the size of the group
    const int earlier = g.scan(static_cast<int>(better_one) | tie << 16, &sums);
    const int tied = ties + (earlier >> 16);
    const int row = before + (earlier & 0xFFFF) + (tied < room ? tied : room);
    const bool kept = better_one || (tie && tied < room);
    if (kept) p.slots[row] = slot;
    if (slot < all) p.rows[slot] = kept ? row : -1;
    before += sums & 0xFFFF, ties += sums >> 16;
  }
  g.sync();

  auto team = g.team();
  for (int b = team.index(); b < p.batch; b += team.count()) {
    const int used = p.num_nodes[b] < p.nodes ? p.num_nodes[b] : p.nodes;
    int count = 0;
    for (int n = team.lane(); n < used; n += team.size()) count += p.rows[b * p.nodes + n] >= 0;
    count = team.sum(count);
    if (team.lane() == 0) p.counts[b] = count;
  }
}

}  // namespace dspark
