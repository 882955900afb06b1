#include "cpu/glm_tree.h"

#include <torch/csrc/stable/library.h>

#include "common/glm_tree_arguments.h"
#include "cpu/parallel.h"

namespace dspark {
namespace {

TreeTensors glm_tree(Tensor ids, Tensor keys, Tensor logsumexp, Tensor gate, Tensor root,
                     Tensor table_in, Tensor table_out, Tensor mix, Tensor depth_scale,
                     std::optional<Tensor> calibration, std::optional<Tensor> temperature,
                     std::optional<Tensor> paths, std::optional<Tensor> path_scores,
                     int64_t num_nodes, double min_score) {
  GlmTreeArguments arguments(ids, keys, logsumexp, gate, root, table_in, table_out, mix,
                             depth_scale, calibration, temperature, paths, path_scores, num_nodes,
                             min_score, "glm_tree");
  arguments.view.layout = GlmLayout(arguments.view.shape);
  const int64_t bytes = arguments.view.layout.bytes();
  const int64_t workers = num_workers(arguments.batch);
  const Tensor workspace = empty({workers * bytes}, ScalarType::Byte);
  char* const memory = static_cast<char*>(workspace.mutable_data_ptr());
  parallel_tasks(arguments.batch, workers, [&](int64_t worker, int64_t request) {
    DSPARK_CALL_CPU_KERNEL(glm_tree_request, arguments.view, request, memory + worker * bytes);
  });
  return arguments.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("glm_tree", TORCH_BOX(&glm_tree)); }

}  // namespace dspark
