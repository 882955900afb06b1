// One request's tree, built by one thread.

#include "cpu/glm_tree.h"

#include "cpu/kernels/simd_group.h"

namespace dspark::DSPARK_ISA {

void glm_tree_request(const GlmTree& p, int64_t b, char* workspace) {
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const GlmShape& s = p.shape;
    const int64_t heads = b * s.heads, candidates = heads * s.candidates;
    const int64_t paths = b * s.paths * s.path_length, nodes = b * s.nodes;
    const float temperature = p.temperature == nullptr ? 1.0f : p.temperature[b];
    const GlmInputs<T> in{
        p.ids + candidates,
        p.keys + candidates,
        p.logsumexp + heads,
        p.gate + heads * 2 * s.rank,
        p.root[b],
        (const T*)p.table_in,
        (const T*)p.table_out,
        (const T*)p.mix,
        p.depth_scale,
        p.calibration,
        temperature > 0 ? temperature : 1.0f,
        s.paths > 0 ? p.paths + paths : nullptr,
        s.paths > 0 ? p.path_scores + paths : nullptr,
    };
    const GlmOutputs out{
        p.tokens + nodes, p.parents + nodes,
        p.depths + nodes, p.ancestors + nodes * ((s.nodes + 63) / 64),
        p.scores + nodes, p.num_nodes + b,
    };
    SimdGroup group;
    TreeScratch scratch;
    build_tree(group, s, in, GlmWorkspace(s, workspace), scratch, out);
  });
}

}  // namespace dspark::DSPARK_ISA
