#include "cpu/typical_accept.h"

#include "cpu/kernels/simd_group.h"

namespace dspark::DSPARK_ISA {

void typical_accept_request(const TypicalAccept& p, int64_t b) {
  with_type(p.dtype, [&](auto type) {
    SimdGroup group;
    TypicalScratch scratch;
    int32_t path[kMaxNodes];
    dspark::typical_accept_request<SimdGroup, decltype(type)>(group, p, b, scratch, path);
  });
}

}  // namespace dspark::DSPARK_ISA
