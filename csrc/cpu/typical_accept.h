// What the launcher and the kernel of typical_accept share.

#pragma once

#include "common/typical.h"
#include "cpu/isa.h"
#include "cpu/types.h"

namespace dspark {

struct TypicalRequest {
  TreeView tree;
  DType dtype;
  const void* logits;  // [N, V]
  int64_t row_stride, vocab;
  float temperature;
};

DSPARK_CPU_KERNEL(int typical_accept_walk(const TypicalRequest& request,
                                          const TypicalOptions& options, int32_t* path))

}  // namespace dspark
