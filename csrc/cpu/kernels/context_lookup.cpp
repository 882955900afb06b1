#include "cpu/context_lookup.h"

#include "cpu/kernels/simd_group.h"

namespace dspark::DSPARK_ISA {

void context_lookup_request(const ContextLookup& p, int64_t b, int64_t* matches) {
  SimdGroup group;
  LookupScratch scratch;
  dspark::context_lookup_request(group, p, b, scratch, matches);
}

}  // namespace dspark::DSPARK_ISA
