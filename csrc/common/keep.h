// The N best of the nodes kept so far and of new children, for `glm_tree`.
//
// Children are those of one Level, or the Tails of paths: numbers from 0 on, each with a score, 0
// where there is no child, and child_rest<G>(children, s, child), the rest of its key.

#pragma once

#include "common/level.h"

namespace dspark {

// Calls visit(first, bits) for the children that may be among the N best, of scores[0 .. end - 1]:
// a bit for each of first .. first + kWidth - 1.
template <class G, class Visit>
DSPARK_HOST_DEVICE void visit_children(G& g, const GlmShape& shape, int kept, int end,
                                       const float* scores, const TreeScratch& s,
                                       const Visit& visit) {
  using V = typename G::Vector;
  // with N nodes kept, a child must be above the lowest of them: on a tie the lower depth wins
  const V bar = G::splat(kept < shape.nodes ? 0.0f : s.lowest), least = G::splat(shape.min_score);
  for (int first = g.lane() * G::kWidth; first < end; first += g.size() * G::kWidth) {
    const V score = first + G::kWidth <= end ? G::load_own(scores + first)
                                             : G::load_first(scores + first, end - first);
    const uint32_t bits = G::bits(score > bar) & ~G::bits(score < least);
    if (bits != 0) visit(first, bits);
  }
}

// Lists in s.key the nodes and, from kMaxNodes on, the children that may be among the N best and
// few others; returns how many children. Before it s.listed is 0.
template <class G, class Children>
DSPARK_HOST_DEVICE int list_keys(G& g, const GlmShape& shape, const Children& children, int kept,
                                 int end, const float* scores, TreeScratch& s) {
  const int room = shape.nodes + kFew;
  uint64_t* const list = s.key + kMaxNodes;
  const auto key = [&](int child) {
    return key_of<G>(scores[child], child_rest<G>(children, s, child));
  };
  for (int i = g.lane(); i < kept; i += g.size()) s.key[i] = key_of<G>(s.score[i], i);
  visit_children(g, shape, kept, end, scores, s, [&](int first, uint32_t bits) {
    int place = g.add(&s.listed, count_bits(bits));
    for (; bits != 0 && place < room; bits &= bits - 1) {
      list[place++] = key(first + lowest_bit(bits));
    }
  });
  g.sync();
  if (s.listed <= room) return s.listed;
  // too many: the first digits of the key at which the N best end
  uint64_t digits = 0;
  int place = 0, better = 0;
  for (;; ++place) {  // the keys are distinct: with all digits there is one in a bin
    clear(g, s.select);
    g.sync();
    const auto count = [&](uint64_t one) {
      if (one >> digit_shift(place) >> kDigitBits != digits) return;
      g.add(&s.select.histogram[digit_of(one, place)], 1);
    };
    visit_children(g, shape, kept, end, scores, s, [&](int first, uint32_t bits) {
      for (; bits != 0; bits &= bits - 1) count(key(first + lowest_bit(bits)));
    });
    for (int i = g.lane(); i < kept; i += g.size()) count(s.key[i]);
    g.sync();
    find_bin(g, shape.nodes - better, s.select);
    digits = digits << kDigitBits | static_cast<uint64_t>(s.select.bin);
    better += s.select.before;
    if (better + s.select.inside <= room) break;
  }
  const uint64_t end_key = (digits + 1) << digit_shift(place);
  if (g.lane() == 0) s.listed = 0;
  g.sync();
  visit_children(g, shape, kept, end, scores, s, [&](int first, uint32_t bits) {
    for (; bits != 0; bits &= bits - 1) {
      const uint64_t one = key(first + lowest_bit(bits));
      if (one < end_key) list[g.add(&s.listed, 1)] = one;
    }
  });
  g.sync();
  return s.listed;
}

// Of the nodes and the listed children, takes the N best: marks nodes in s.taken, and puts the
// children's keys into s.order.
template <class G>
DSPARK_HOST_DEVICE void take_best(G& g, int nodes, int kept, int listed, TreeScratch& s) {
  const auto mark = [&](int node) {
    g.add(&s.taken[node / 32], static_cast<int>(1u << node % 32));
  };
  const uint64_t* list = s.key + kMaxNodes;
  if (g.size() == 1) {
    const int count = kept + listed;
    for (int i = 0; i < listed; ++i) s.key[kept + i] = list[i];
    const uint64_t last = value_at(g, s.key, count, (count < nodes ? count : nodes) - 1);
    s.lowest = score_of<G>(last);
    int children = 0;
    for (int i = 0; i < count; ++i) {
      const uint64_t key = s.key[i];
      if (key > last) continue;
      if (key & kChild) {
        s.order[children++] = key;
      } else {
        mark(static_cast<int>(key & kRest));
      }
    }
    insertion_sort(g, s.order, children);
    return;
  }
  constexpr int kPair = 2;  // keys side by side
  auto team = g.team();
  for (int i = team.index() * kPair; i < kept + listed; i += team.count() * kPair) {
    uint64_t key[kPair];
    int before[kPair] = {}, children[kPair] = {};  // nodes, and children, that come before it
    DSPARK_UNROLL
    for (int n = 0; n < kPair; ++n) {
      const int child = i + n < kept + listed ? i + n - kept : 0;
      key[n] = i + n < kept ? s.key[i + n] : list[child];
    }
    const auto compare = [&](const uint64_t* with, int count, int (&sum)[kPair]) {
      DSPARK_SIDE_BY_SIDE(4)
      for (int j = team.lane(); j < count; j += team.size()) {
        const uint64_t other = with[j];
        DSPARK_UNROLL
        for (int n = 0; n < kPair; ++n) sum[n] += other < key[n];
      }
    };
    compare(s.key, kept, before);
    compare(list, listed, children);
    DSPARK_UNROLL
    for (int n = 0; n < kPair; ++n) {
      const int sums = team.sum(before[n] << 16 | children[n]), earlier = sums & 0xFFFF;
      const int place = (sums >> 16) + earlier;
      if (team.lane() != n || place >= nodes || i + n >= kept + listed) continue;
      if (i + n < kept) {
        mark(i + n);
      } else {
        s.order[earlier] = key[n];
      }
      if (place == nodes - 1) s.lowest = score_of<G>(key[n]);
    }
  }
  g.sync();
}

// Where a node that was taken goes when the others are dropped; of `kept`, how many were.
DSPARK_FORCE_INLINE int place_of(const TreeScratch& s, int node) {
  int place = 0;
  for (int word = 0; word < node / 32; ++word) {
    place += count_bits(static_cast<uint32_t>(s.taken[word]));
  }
  if (node % 32 == 0) return place;
  return place + count_bits(static_cast<uint32_t>(s.taken[node / 32]) << (32 - node % 32));
}

// Closes the gaps that nodes leave which were not taken. Without a sync at the end.
template <class G>
DSPARK_HOST_DEVICE void drop_nodes(G& g, int kept, TreeScratch& s) {
  for (int first = 0; first < kept; first += g.size()) {
    const int i = first + g.lane();
    const bool taken = i < kept && s.taken[i / 32] >> (i % 32) & 1;
    int64_t token = 0;
    float score = 0;
    int parent = 0, depth = 0;
    if (taken) token = s.token[i], score = s.score[i], parent = s.parent[i], depth = s.depth[i];
    g.sync();
    if (taken) {
      const int to = place_of(s, i);
      s.token[to] = token, s.score[to] = score, s.depth[to] = depth;
      s.parent[to] = parent < 0 ? -1 : place_of(s, parent);
    }
  }
}

struct Stay {
  int nodes, children;
};

// Keeps the N best of `kept` nodes and the children of scores[0 .. end - 1]. Returns how many of
// both stay: place_of says where nodes do, and s.order holds the keys of the children. Without a
// sync at the end.
template <class G, class Children>
DSPARK_HOST_DEVICE Stay keep_best(G& g, const GlmShape& shape, const Children& children, int kept,
                                  int end, const float* scores, TreeScratch& s) {
  for (int i = g.lane(); i < kMaxNodes / 32; i += g.size()) s.taken[i] = 0;
  const int listed = list_keys(g, shape, children, kept, end, scores, s);
  take_best(g, shape.nodes, kept, listed, s);
  if (g.lane() == 0) s.listed = 0;
  drop_nodes(g, kept, s);
  const int stay = place_of(s, kept), all = kept + listed;
  return {stay, (all < shape.nodes ? all : shape.nodes) - stay};
}

}  // namespace dspark
