// The kernel of context_lookup.

#pragma once

#include "common/lookup.h"
#include "cpu/isa.h"

namespace dspark {

DSPARK_CPU_KERNEL(void context_lookup_request(const ContextLookup& p, int64_t request,
                                              int64_t* matches))

}  // namespace dspark
