// The kernel of chain_reject.

#pragma once

#include "common/chain.h"
#include "cpu/isa.h"

namespace dspark {

DSPARK_CPU_KERNEL(void chain_reject_request(const ChainReject& p, int64_t request))

}  // namespace dspark
