#include "cpu/typical_accept.h"

#include "cpu/kernels/simd_group.h"

namespace dspark::DSPARK_ISA {

int typical_accept_walk(const TypicalRequest& request, const TypicalOptions& options,
                        int32_t* path) {
  return with_type(request.dtype, [&](auto type) {
    using T = decltype(type);
    SimdGroup group;
    TypicalScratch scratch;
    const LogitsRow<T> row{(const T*)request.logits, request.vocab, request.temperature};
    return typical_walk(group, request.tree, row, request.row_stride, options, scratch, path);
  });
}

}  // namespace dspark::DSPARK_ISA
