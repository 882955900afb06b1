#include "cpu/glm_tree.h"

#include "cpu/kernels/simd_group.h"

namespace dspark::DSPARK_ISA {

void glm_tree_request(const GlmTree& p, int64_t b, char* workspace) {
  with_type(p.dtype, [&](auto type) {
    SimdGroup group;
    TreeScratch scratch;
    dspark::glm_tree_request<SimdGroup, decltype(type)>(group, p, b, workspace, scratch);
  });
}

}  // namespace dspark::DSPARK_ISA
