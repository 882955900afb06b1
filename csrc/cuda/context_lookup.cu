#include <torch/csrc/stable/library.h>

#include "common/lookup_arguments.h"
#include "cuda/group.cuh"
#include "cuda/launch.cuh"

namespace dspark {
namespace {

constexpr int kThreads = 1024;
using Group = BlockGroup<kThreads>;

// One request per block.
__global__ __launch_bounds__(kThreads) void context_lookup_kernel(
    const __grid_constant__ ContextLookup p, int64_t* matches) {
  __shared__ LookupScratch scratch;
  __shared__ Group::Scratch group_scratch;
  Group group(group_scratch);
  const int64_t request = blockIdx.x;
  context_lookup_request(group, p, request, scratch, matches + request * p.capacity);
}

std::tuple<Tensor, Tensor> context_lookup(Tensor history, Tensor lengths, int64_t max_ngram,
                                          int64_t min_ngram, int64_t num_paths,
                                          int64_t path_length) {
  constexpr const char* kOp = "context_lookup";
  check_device(kOp, {history, lengths});
  const CurrentDevice device(history, kOp);
  const LookupArguments arguments(history, lengths, max_ngram, min_ngram, num_paths, path_length,
                                  kOp);
  if (arguments.batch == 0) return arguments.outputs();
  const Tensor matches =
      empty({arguments.batch, arguments.view.capacity}, ScalarType::Long, history);
  context_lookup_kernel<<<static_cast<unsigned>(arguments.batch), kThreads, 0, device.stream>>>(
      arguments.view, matches.mutable_data_ptr<int64_t>());
  check_cuda(cudaGetLastError(), kOp);
  return arguments.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CUDA, m) { m.impl("context_lookup", TORCH_BOX(&context_lookup)); }

}  // namespace dspark
