#include <torch/csrc/stable/library.h>

#include "common/glm_tree_arguments.h"
#include "cuda/group.cuh"
#include "cuda/launch.cuh"

namespace dspark {
namespace {

constexpr int kThreads = 256;
using Group = BlockGroup<kThreads>;

// The draft that comes with the package runs in the shared memory of an sm_90 block.
constexpr GlmShape kShippedDraft{5, 64, 128, 64, 4, 64, 0, 0, 0, 0, true};
static_assert(GlmWorkspace::bytes(kShippedDraft) + sizeof(TreeScratch) + sizeof(Group::Scratch) <=
              227 << 10);

// One request per block. kShared: the workspace is in shared memory, else in `memory`.
template <typename T, bool kShared>
__global__ __launch_bounds__(kThreads, 1) void glm_tree_kernel(const __grid_constant__ GlmTree p,
                                                               char* memory, int64_t bytes) {
  extern __shared__ __align__(32) char dynamic[];
  __shared__ TreeScratch scratch;
  __shared__ Group::Scratch group_scratch;
  Group group(group_scratch);
  const int64_t request = blockIdx.x;
  char* workspace = kShared ? dynamic : memory + request * bytes;
  glm_tree_request<Group, T>(group, p, request, workspace, scratch);
}

TreeTensors glm_tree(Tensor ids, Tensor keys, Tensor logsumexp, Tensor gate, Tensor root,
                     Tensor table_in, Tensor table_out, Tensor mix, Tensor depth_scale,
                     std::optional<Tensor> calibration, std::optional<Tensor> temperature,
                     std::optional<Tensor> paths, std::optional<Tensor> path_scores,
                     int64_t num_nodes, double min_score) {
  constexpr const char* kOp = "glm_tree";
  check_device(kOp, {ids, keys, logsumexp, gate, root, table_in, table_out, mix, depth_scale,
                     calibration, temperature, paths, path_scores});
  const CurrentDevice device(ids, kOp);
  const GlmTreeArguments arguments(ids, keys, logsumexp, gate, root, table_in, table_out, mix,
                                   depth_scale, calibration, temperature, paths, path_scores,
                                   num_nodes, min_score, kOp);
  if (arguments.batch == 0) return arguments.outputs();
  GlmTree view = arguments.view;
  view.shape.matrix_unit = view.dtype != DType::kFp32 && view.shape.rank % 16 == 0 &&
                           reinterpret_cast<uintptr_t>(view.mix) % 32 == 0;
  const int64_t bytes = GlmWorkspace::bytes(view.shape);
  const auto blocks = static_cast<unsigned>(arguments.batch);
  with_type(view.dtype, [&](auto type) {
    using T = decltype(type);
    const auto kernel = glm_tree_kernel<T, true>;
    cudaFuncAttributes attributes;
    check_cuda(cudaFuncGetAttributes(&attributes, kernel), kOp);
    const int64_t limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, kOp) -
                          static_cast<int64_t>(attributes.sharedSizeBytes);
    if (bytes <= limit) {
      // the same for every call: another thread may be launching with other shapes
      check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(limit)),
                 kOp);
      kernel<<<blocks, kThreads, static_cast<size_t>(bytes), device.stream>>>(view, nullptr, bytes);
    } else {
      const Tensor workspace = empty({arguments.batch * bytes}, ScalarType::Byte, ids);
      glm_tree_kernel<T, false><<<blocks, kThreads, 0, device.stream>>>(
          view, static_cast<char*>(workspace.mutable_data_ptr()), bytes);
    }
    check_cuda(cudaGetLastError(), kOp);
  });
  return arguments.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CUDA, m) { m.impl("glm_tree", TORCH_BOX(&glm_tree)); }

}  // namespace dspark
