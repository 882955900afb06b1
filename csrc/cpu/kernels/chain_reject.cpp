#include "cpu/chain_reject.h"

#include "cpu/kernels/simd_group.h"

namespace dspark::DSPARK_ISA {

void chain_reject_request(const ChainReject& p, int64_t b) {
  with_type(p.dtype, [&](auto type) {
    SimdGroup group;
    dspark::chain_reject_request<SimdGroup, decltype(type)>(group, p, b);
  });
}

}  // namespace dspark::DSPARK_ISA
