#include <torch/csrc/stable/library.h>

#include "common/seen_arguments.h"
#include "cuda/group.cuh"
#include "cuda/launch.cuh"

namespace dspark {
namespace {

constexpr int kThreads = 1024;
constexpr int kWords = 4096;  // of a block, in 32 KB of shared memory: 262,144 tokens
using Group = BlockGroup<kThreads>;

// One draw per block, and where the vocabulary is large, a part of it.
__global__ __launch_bounds__(kThreads) void seen_tokens_kernel(
    const __grid_constant__ SeenTokens p) {
  __shared__ uint32_t bits[2 * kWords];
  __shared__ Group::Scratch group_scratch;
  Group group(group_scratch);
  seen_tokens_row(group, p, blockIdx.x, blockIdx.y * kWords, kWords, bits);
}

Tensor seen_tokens(Tensor history, Tensor lengths, int64_t vocab_size, std::optional<Tensor> tokens,
                   std::optional<Tensor> ancestors, std::optional<Tensor> slots) {
  constexpr const char* kOp = "seen_tokens";
  check_device(kOp, {history, lengths, tokens, ancestors, slots});
  const CurrentDevice device(history, kOp);
  const SeenArguments arguments(history, lengths, vocab_size, tokens, ancestors, slots, kOp);
  if (arguments.rows == 0) return arguments.output();
  const dim3 grid(static_cast<unsigned>(arguments.rows),
                  static_cast<unsigned>((arguments.view.words + kWords - 1) / kWords));
  seen_tokens_kernel<<<grid, kThreads, 0, device.stream>>>(arguments.view);
  check_cuda(cudaGetLastError(), kOp);
  return arguments.output();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CUDA, m) { m.impl("seen_tokens", TORCH_BOX(&seen_tokens)); }

}  // namespace dspark
