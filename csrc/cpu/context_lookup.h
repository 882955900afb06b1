// What the launcher and the kernel of context_lookup share.

#pragma once

#include "common/lookup.h"
#include "cpu/isa.h"

namespace dspark {

DSPARK_CPU_KERNEL(void context_lookup_request(const int64_t* history, int length,
                                              const LookupOptions& options, int64_t* matches,
                                              int64_t* paths, int32_t* match_length))

}  // namespace dspark
