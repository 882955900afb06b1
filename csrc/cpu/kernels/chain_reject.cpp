#include "cpu/chain_reject.h"

#include "cpu/kernels/simd_group.h"

namespace dspark::DSPARK_ISA {

void chain_reject_request(const ChainReject& p, int64_t b) {
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const ChainInputs<T> in{p.tokens + b * p.length,
                            (const T*)p.draft + b * p.draft_batch_stride,
                            (const T*)p.target + b * p.target_batch_stride,
                            p.draft_stride,
                            p.target_stride,
                            p.vocab,
                            (int)p.length,
                            p.temperature[b],
                            p.seed[b],
                            p.position[b]};
    SimdGroup group;
    reject_chain(group, in, p.emitted + b * (p.length + 1), p.num_emitted + b);
  });
}

}  // namespace dspark::DSPARK_ISA
