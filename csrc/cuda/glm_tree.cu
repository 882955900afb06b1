#include <torch/csrc/stable/library.h>

#include <utility>

#include "common/glm_tree_arguments.h"
#include "cuda/group.cuh"
#include "cuda/launch.cuh"

namespace dspark {
namespace {

// As many as have enough registers: addresses in global memory take more.
template <bool kShared>
constexpr int kThreads = kShared ? 512 : 256;

// kShared: the workspace is in shared memory.
template <bool kShared>
struct Group : BlockGroup<kThreads<kShared>> {
  using Block = BlockGroup<kThreads<kShared>>;
  using Block::Block;

  // Asynchronously where the hardware can.
  template <typename T>
  __device__ static void copy_packet(T* to, const T* from) {
    if (!kShared || from == nullptr) return Block::copy_packet(to, from);
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
  }
  template <typename T>
  __device__ static void copy_number(T* to, const T* from) {
    if (!kShared) return Block::copy_number(to, from);
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(from),
                 "n"(sizeof(T))
                 : "memory");
  }
  __device__ static void wait_for_packets() {
    if constexpr (kShared) {
      asm volatile("cp.async.commit_group;\n\tcp.async.wait_group 0;" ::: "memory");
    }
  }
};

// The draft that comes with the package runs in the shared memory of an sm_90 block.
constexpr GlmShape kShippedDraft{5, 64, 128, 64, 4, 64, 0, 0, 0, 0, true, true, 1};
static_assert(GlmLayout(kShippedDraft).bytes() + sizeof(TreeScratch) +
                  sizeof(Group<true>::Scratch) <=
              227 << 10);

// One request per block. kShared: the workspace is in shared memory, else in `memory`.
template <typename T, bool kShared>
__global__ __launch_bounds__(kThreads<kShared>,
                             1) void glm_tree_kernel(const __grid_constant__ GlmTree p,
                                                     char* memory, int64_t bytes) {
  extern __shared__ __align__(32) char dynamic[];
  __shared__ TreeScratch scratch;
  __shared__ typename Group<kShared>::Scratch group_scratch;
  Group<kShared> group(group_scratch);
  const int64_t request = blockIdx.x;
  char* workspace = kShared ? dynamic : memory + request * bytes;
  glm_tree_request<Group<kShared>, T>(group, p, request, workspace, scratch);
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
  const auto aligned = [](const void* address, int bytes) {
    return reinterpret_cast<uintptr_t>(address) % bytes == 0;
  };
  view.shape.matrix_unit = view.dtype != DType::kFp32 && view.shape.rank % 16 == 0 &&
                           aligned(view.mix, 16) && aligned(view.table_in, 16) &&
                           aligned(view.table_out, 16) && view.shape.table_in_stride % 8 == 0 &&
                           view.shape.table_out_stride % 8 == 0;
  const auto blocks = static_cast<unsigned>(arguments.batch);
  with_type(view.dtype, [&](auto type) {
    using T = decltype(type);
    const auto kernel = glm_tree_kernel<T, true>;
    cudaFuncAttributes attributes;
    check_cuda(cudaFuncGetAttributes(&attributes, kernel), kOp);
    const int64_t limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, kOp) -
                          static_cast<int64_t>(attributes.sharedSizeBytes);
    // as much at once as there is room for
    for (const auto& [own_mix, all] : {std::pair{true, true}, {true, false}, {false, false}}) {
      view.shape.own_mix = own_mix && view.shape.matrix_unit;
      view.shape.levels = all && view.shape.heads > 1 ? view.shape.heads : 1;
      view.layout = GlmLayout(view.shape);
      if (view.layout.bytes() <= limit) break;
    }
    const int64_t bytes = view.layout.bytes();
    if (bytes <= limit) {
      // the same for every call: another thread may be launching with other shapes
      check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(limit)),
                 kOp);
      kernel<<<blocks, kThreads<true>, static_cast<size_t>(bytes), device.stream>>>(view, nullptr,
                                                                                    bytes);
    } else {
      const Tensor workspace = empty({arguments.batch * bytes}, ScalarType::Byte, ids);
      glm_tree_kernel<T, false><<<blocks, kThreads<false>, 0, device.stream>>>(
          view, static_cast<char*>(workspace.mutable_data_ptr()), bytes);
    }
    check_cuda(cudaGetLastError(), kOp);
  });
  return arguments.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CUDA, m) { m.impl("glm_tree", TORCH_BOX(&glm_tree)); }

}  // namespace dspark
