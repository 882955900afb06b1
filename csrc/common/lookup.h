// Lookup of the current suffix in the history, for `context_lookup`.

#pragma once

#include "common/group.h"

namespace dspark {

struct LookupOptions {
  int max_ngram, min_ngram, num_paths, path_length;
};

struct ContextLookup {     // all requests
  const int64_t* history;  // [B, S]
  int64_t stride;
  const int32_t* lengths;  // [B]
  int capacity;
  LookupOptions options;
  int64_t* paths;         // [B, num_paths, path_length]
  int32_t* match_length;  // [B, num_paths]
};

struct LookupScratch {
  int found;
  int ends[kMaxPaths];
};

// Tokens that history[0 .. end] and history[0 .. length - 1] have in common at their ends.
template <class G>
DSPARK_HOST_DEVICE int common_suffix(const int64_t* history, int length, int end, int max_ngram) {
  int match = 0;
  while (match < max_ngram && match <= end && history[end - match] == history[length - 1 - match]) {
    ++match;
  }
  return match;
}

// Whether what follows two ends is equal as far as the history goes behind both.
template <class G>
DSPARK_HOST_DEVICE bool same_continuation(const int64_t* history, int length, int a, int b,
                                          int path_length) {
  const int left = length - 1 - (a > b ? a : b);
  const int shorter = left < path_length ? left : path_length;
  for (int i = 1; i <= shorter; ++i) {
    if (history[a + i] != history[b + i]) return false;
  }
  return true;
}

// A member compares G::kScan tokens at once, which lie the size of the group apart. matches: room
// for `length` numbers; paths [num_paths, path_length] and match_length [num_paths] are the
// outputs.
template <class G>
DSPARK_HOST_DEVICE void find_continuations(G& g, const int64_t* history, int length,
                                           const LookupOptions& options, LookupScratch& scratch,
                                           int64_t* matches, int64_t* paths,
                                           int32_t* match_length) {
  if (g.lane() == 0) scratch.found = 0;
  g.sync();
  // every occurrence as match length · 2^32 + end, so that the best is the largest
  for (int start = g.lane(); start < length - 1; start += g.size() * G::kScan) {
    const int left = (length - 2 - start) / g.size() + 1;
    const int count = left < G::kScan ? left : G::kScan;
    if (!g.contains(history + start, count, history[length - 1])) continue;
    for (int i = 0; i < count; ++i) {
      const int end = start + i * g.size();
      const int match = common_suffix<G>(history, length, end, options.max_ngram);
      if (match >= options.min_ngram) {
        matches[g.add(&scratch.found, 1)] = (static_cast<int64_t>(match) << 32) | end;
      }
    }
  }
  g.sync();
  const int found = scratch.found;

  int64_t previous = INT64_MAX;
  for (int p = 0; p < options.num_paths; ++p) {
    int64_t best = 0;
    for (int i = g.lane(); i < found && previous > 0; i += g.size()) {
      const int64_t match = matches[i];
      bool better = match > best && match < previous;
      for (int chosen = 0; chosen < p && better; ++chosen) {
        better = !same_continuation<G>(history, length, scratch.ends[chosen],
                                       static_cast<int>(match & INT32_MAX), options.path_length);
      }
      if (better) best = match;
    }
    best = g.max(best);
    const int end = static_cast<int>(best & INT32_MAX), period = length - 1 - end;
    for (int i = g.lane(); i < options.path_length; i += g.size()) {
      paths[p * options.path_length + i] = best > 0 ? history[end + 1 + i % period] : -1;
    }
    if (g.lane() == 0) {
      match_length[p] = static_cast<int32_t>(best >> 32);
      scratch.ends[p] = end;
    }
    g.sync();
    previous = best;
  }
}

// matches: room for p.capacity numbers.
template <class G>
DSPARK_HOST_DEVICE void context_lookup_request(G& g, const ContextLookup& p, int64_t b,
                                               LookupScratch& scratch, int64_t* matches) {
  const int given = p.lengths[b] < 0 ? 0 : p.lengths[b];
  const int length = given < p.capacity ? given : p.capacity;
  const int64_t row = b * p.options.num_paths;
  find_continuations(g, p.history + b * p.stride, length, p.options, scratch, matches,
                     p.paths + row * p.options.path_length, p.match_length + row);
}

}  // namespace dspark
