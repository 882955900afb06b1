// The kernel of glm_tree.

#pragma once

#include "common/glm_tree.h"
#include "cpu/isa.h"

namespace dspark {

DSPARK_CPU_KERNEL(void glm_tree_request(const GlmTree& p, int64_t request, char* workspace))

}  // namespace dspark
