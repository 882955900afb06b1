// What the launcher and the kernel of chain_reject share.

#pragma once

#include "common/chain.h"
#include "cpu/isa.h"
#include "cpu/types.h"

namespace dspark {

struct ChainReject {  // all requests
  DType dtype;
  const int64_t* tokens;
  const void *draft, *target;
  int64_t length, vocab, draft_batch_stride, draft_stride, target_batch_stride, target_stride;
  const float* temperature;
  const int64_t *seed, *position;

  int64_t* emitted;
  int32_t* num_emitted;
};

DSPARK_CPU_KERNEL(void chain_reject_request(const ChainReject& p, int64_t request))

}  // namespace dspark
