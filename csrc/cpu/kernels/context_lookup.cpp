#include "cpu/context_lookup.h"

#include "cpu/kernels/simd_group.h"

namespace dspark::DSPARK_ISA {

void context_lookup_request(const int64_t* history, int length, const LookupOptions& options,
                            int64_t* matches, int64_t* paths, int32_t* match_length) {
  SimdGroup group;
  LookupScratch scratch;
  find_continuations(group, history, length, options, scratch, matches, paths, match_length);
}

}  // namespace dspark::DSPARK_ISA
