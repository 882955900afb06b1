// The N best of the nodes kept so far and of new children, for `glm_tree`.
//
// Children are those of one Level, or the Tails of paths: numbers from 0 on, each with a score, 0
// where there is no child, and child_rest<G>(children, s, child), the rest of its key.

#pragma once

#include "common/level.h"

namespace dspark {

constexpr uint64_t kNoEnd = ~uint64_t{0};  // above all keys

// How far apart the children are of which a member looks at kWidth at once: the best ones are
// neighbours, and are listed by many members where there are such.
template <class G>
DSPARK_FORCE_INLINE int stride_of(const G& g) {
  return kCountScores<G> ? g.size() : 1;
}

// Calls visit(first, bits) for the children that may be among the N best, of scores[0 .. end - 1]:
// a bit for each of kWidth, from `first` on and stride_of(g) apart.
template <class G, class Visit>
DSPARK_HOST_DEVICE void visit_children(G& g, const GlmShape& shape, float bar, int end,
                                       const float* scores, const Visit& visit) {
  using V = typename G::Vector;
  const V lowest = G::splat(bar), least = G::splat(shape.min_score);
  const int stride = stride_of(g), own = g.lane() * (stride == 1 ? G::kWidth : 1);
  for (int first = own; first < end; first += g.size() * G::kWidth) {
    V score;
    if constexpr (kCountScores<G>) {
      DSPARK_UNROLL
      for (int i = 0; i < G::kWidth; ++i) {
        const int child = first + i * stride;
        score.lane[i] = child < end ? scores[child] : 0.0f;
      }
    } else {
      score = first + G::kWidth <= end ? G::load_own(scores + first)
                                       : G::load_first(scores + first, end - first);
    }
    const uint32_t bits = G::bits(score > lowest) & ~G::bits(score < least);
    if (bits != 0) visit(first, bits);
  }
}

// What is to be chosen from: nodes 0 .. kept - 1, and the children of scores[0 .. end - 1] above
// the bar.
template <class Children>
struct Choice {
  const Children& children;
  int kept, end;
  const float* scores;
  float bar;
};

template <class G, class Children>
DSPARK_FORCE_INLINE uint64_t child_key(const Choice<Children>& from, const TreeScratch& s,
                                       int child) {
  return key_of<G>(from.scores[child], child_rest<G>(from.children, s, child));
}

// Lists the keys of all children behind kRoom in s.key, as far as there is room. Before it s.listed
// is 0, after it and a sync how many they are.
template <class G, class Children>
DSPARK_HOST_DEVICE void list_children(G& g, const GlmShape& shape, const Choice<Children>& from,
                                      TreeScratch& s) {
  uint64_t* const list = s.key + kRoom;
  visit_children(g, shape, from.bar, from.end, from.scores, [&](int first, uint32_t bits) {
    int place = g.add(&s.listed, count_bits(bits));
    for (; bits != 0 && place < shape.nodes + kFew; bits &= bits - 1) {
      list[place++] = child_key<G>(from, s, first + lowest_bit(bits) * stride_of(g));
    }
  });
}

// Where too many were listed: lists the children with the first digits of the N best, few others,
// and returns a key that all of these are below.
template <class G, class Children>
DSPARK_HOST_DEVICE uint64_t list_first_digits(G& g, const GlmShape& shape,
                                              const Choice<Children>& from, TreeScratch& s) {
  const auto visit_keys = [&](const auto& visit) {
    visit_children(g, shape, from.bar, from.end, from.scores, [&](int first, uint32_t bits) {
      for (; bits != 0; bits &= bits - 1) {
        visit(child_key<G>(from, s, first + lowest_bit(bits) * stride_of(g)));
      }
    });
  };
  uint64_t digits = 0;
  int place = 0, better = 0;
  for (;; ++place) {  // the keys are distinct: with all digits there is one in a bin
    clear(g, s.select);
    g.sync();
    const auto count = [&](uint64_t one) {
      if (one >> digit_shift(place) >> kDigitBits != digits) return;
      g.add(&s.select.histogram[digit_of(one, place)], 1);
    };
    visit_keys(count);
    for (int i = g.lane(); i < from.kept; i += g.size()) count(key_of<G>(s.score[i], i));
    g.sync();
    find_bin(g, shape.nodes - better, s.select);
    digits = digits << kDigitBits | static_cast<uint64_t>(s.select.bin);
    better += s.select.before;
    if (better + s.select.inside <= shape.nodes + kFew) break;
  }
  const uint64_t end_key = (digits + 1) << digit_shift(place);
  if (g.lane() == 0) s.listed = 0;
  g.sync();
  visit_keys([&](uint64_t one) {
    if (one < end_key) s.key[kRoom + g.add(&s.listed, 1)] = one;
  });
  return end_key;
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

// What stays of the nodes kept so far, and of their children. Nodes move only if some were dropped.
struct Stay {
  int nodes, children;
  bool dropped;

  DSPARK_FORCE_INLINE int place(const TreeScratch& s, int node) const {
    return dropped ? place_of(s, node) : node;
  }
};

// For a single member: marks in s.taken which nodes are among the N best, and puts the keys of the
// children that are to the front of s.key.
template <class G>
DSPARK_HOST_DEVICE Stay take_best(G& g, int nodes, int kept, TreeScratch& s) {
  const int count = kept + s.listed, last = (count < nodes ? count : nodes) - 1;
  for (int i = 0; i < kept; ++i) s.key[i] = key_of<G>(s.score[i], i);
  for (int i = 0; i < s.listed; ++i) s.key[kept + i] = s.key[kRoom + i];
  const uint64_t last_key = value_at(g, s.key, count, last);
  if (count >= nodes) s.counts.range.bar = score_of<G>(last_key);
  Stay stay{0, 0, true};
  for (int i = 0; i < count; ++i) {
    const uint64_t key = s.key[i];
    if (key > last_key) continue;
    if (key & kChild) {
      s.key[stay.children++] = key;
    } else {
      const int node = static_cast<int>(key & kRest);
      s.taken[node / 32] |= 1 << node % 32;
      ++stay.nodes;
    }
  }
  return stay;
}

// Marks in s.taken the nodes above the bar whose keys are below `end_key`.
template <class G>
DSPARK_HOST_DEVICE void mark_nodes(G& g, int kept, float bar, uint64_t end_key, TreeScratch& s) {
  for (int first = g.lane() * 32; first < kept; first += g.size() * 32) {
    uint32_t bits = 0;
    DSPARK_UNROLL
    for (int i = 0; i < 32; i += G::kWidth) {
      bits |= G::bits(G::load_own(s.score + first + i) > G::splat(bar)) << i;
    }
    if (kept - first < 32) bits &= (1u << (kept - first)) - 1;
    for (uint32_t left = end_key == kNoEnd ? 0 : bits; left != 0; left &= left - 1) {
      const int i = lowest_bit(left);
      if (key_of<G>(s.score[first + i], first + i) >= end_key) bits &= ~(1u << i);
    }
    s.taken[first / 32] = static_cast<int>(bits);
  }
}

// Keeps the N best of `kept` nodes and the children of scores[0 .. end - 1]; with many members also
// others, as long as there is room. Calls put(team, place, key, stay) for the children that stay,
// the best first, see sort().
template <class G, class Children, class Put>
DSPARK_HOST_DEVICE Stay keep_best(G& g, const GlmShape& shape, const Children& children, int kept,
                                  int end, const float* scores, TreeScratch& s, const Put& put) {
  const int few = shape.nodes + kFew;
  if constexpr (!kCountScores<G>) {
    const Choice<Children> from{children, kept, end, scores, s.counts.range.bar};
    for (int& word : s.taken) word = 0;
    list_children(g, shape, from, s);
    if (s.listed > few) list_first_digits(g, shape, from, s);
    const Stay stay = take_best(g, shape.nodes, kept, s);
    s.listed = 0;
    drop_nodes(g, kept, s);
    sort(g, s.key, stay.children,
         [&](const auto& team, int place, uint64_t key) { put(team, place, key, stay); });
    return stay;
  } else {
    const Choice<Children> from{children, kept, end, scores, find_bar(g, shape.nodes, s.counts)};
    list_children(g, shape, from, s);
    if (g.lane() == 0) s.counts.range.bar = from.bar;
    g.sync();
    Stay stay{kept, s.listed, false};
    if (stay.children > few || kept + stay.children > kRoom) {
      const auto stay_below = [&](uint64_t end_key) {
        mark_nodes(g, kept, from.bar, end_key, s);
        g.sync();
        return Stay{place_of(s, kept), s.listed, true};
      };
      stay = stay_below(kNoEnd);
      if (stay.nodes + stay.children > few) stay = stay_below(list_first_digits(g, shape, from, s));
      drop_nodes(g, kept, s);
    }
    sort(g, s.key + kRoom, stay.children, [&](const auto& team, int place, uint64_t key) {
      if (place < shape.nodes) put(team, place, key, stay);
    });
    if (g.lane() == 0) s.listed = 0;
    if (stay.children > shape.nodes) stay.children = shape.nodes;
    return stay;
  }
}

}  // namespace dspark
