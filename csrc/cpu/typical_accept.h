// The kernel of typical_accept.

#pragma once

#include "common/typical.h"
#include "cpu/isa.h"

namespace dspark {

DSPARK_CPU_KERNEL(void typical_accept_request(const TypicalAccept& p, int64_t request))

}  // namespace dspark
