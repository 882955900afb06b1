// How many nodes and children have which score, roughly: where the N best of a tree end, for groups
// that expand whole levels of it at once.

#pragma once

#include "common/group.h"

namespace dspark {

template <class G>
constexpr bool kCountScores = G::kExpand >= kMaxNodes;

// Four bins per power of two, best scores first; the last one holds all below 1.25 · 2⁻³².
struct ScoreCounts {
  static constexpr int kBins = 128, kShift = 21, kRuns = 8, kRun = kBins / kRuns;
  static constexpr int kRunPitch = kRun + 4;  // runs start in different memory banks
  static constexpr uint32_t kBest = 0x3F800000;

  // Which new scores may be among the N best: those above the bar, but none below `least`.
  struct Range {
    float bar, least;
    DSPARK_FORCE_INLINE bool has(float score) const { return score > bar && !(score < least); }
  };

  alignas(16) int count[kRuns * kRunPitch];
  Range range;
};

// With the root in it. Without a sync at the end.
template <class G>
DSPARK_HOST_DEVICE void clear(G& g, float least, ScoreCounts& counts) {
  constexpr int kSize = kCountScores<G> ? ScoreCounts::kRuns * ScoreCounts::kRunPitch : 0;
  for (int i = g.lane(); i < kSize; i += g.size()) counts.count[i] = i == 0;
  if (g.lane() == 0) counts.range = {0, least};
}

// Counts the score of a child if it is in the range, or with -1 takes it out again; for groups that
// do.
template <class G>
DSPARK_FORCE_INLINE void count_score(G& g, const ScoreCounts::Range& range, float score, int by,
                                     ScoreCounts& counts) {
  if constexpr (!kCountScores<G>) return;
  // without branches but for the last
  const uint32_t lower = (ScoreCounts::kBest - G::float_bits(score)) >> ScoreCounts::kShift;
  const int bin = static_cast<int>(lower < ScoreCounts::kBins ? lower : ScoreCounts::kBins - 1);
  constexpr int kPad = ScoreCounts::kRunPitch - ScoreCounts::kRun;
  int* const count = counts.count + bin + bin / ScoreCounts::kRun * kPad;
  if (range.has(score)) g.add(count, by);
}

// A score that all of the N best are above, and few others. Every team finds it.
template <class G>
DSPARK_HOST_DEVICE float find_bar(G& g, int nodes, const ScoreCounts& counts) {
  static_assert(G::kLeastTeam >= ScoreCounts::kRuns);
  struct alignas(16) Four {
    int of[4];
  };
  constexpr int kFours = ScoreCounts::kRun / 4;
  auto team = g.team();
  const bool has_run = team.lane() < ScoreCounts::kRuns;
  const int* const run = counts.count + (has_run ? team.lane() * ScoreCounts::kRunPitch : 0);
  Four sums[kFours];
  int total = 0;
  DSPARK_UNROLL
  for (int i = 0; i < kFours; ++i) sums[i] = reinterpret_cast<const Four*>(run)[i];
  DSPARK_UNROLL
  for (Four& four : sums) {
    DSPARK_UNROLL
    for (int& sum : four.of) sum = total += sum;
  }
  const int before = team.scan(has_run ? total : 0), wanted = has_run ? nodes - before : 0;
  int bin = 0;  // those before it hold less than N
  DSPARK_UNROLL
  for (const Four& four : sums) {
    DSPARK_UNROLL
    for (const int sum : four.of) bin += static_cast<uint32_t>(sum - wanted) >> 31;
  }
  bin = team.sum(bin);
  if (bin >= ScoreCounts::kBins - 1) return 0;
  return G::bits_float(ScoreCounts::kBest -
                       (static_cast<uint32_t>(bin + 1) << ScoreCounts::kShift));
}

}  // namespace dspark
