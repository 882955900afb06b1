#include "cpu/chain_reject.h"

#include <torch/csrc/stable/library.h>

#include "common/chain_arguments.h"
#include "cpu/parallel.h"

namespace dspark {
namespace {

std::tuple<Tensor, Tensor> chain_reject(Tensor draft_tokens, Tensor draft_logits,
                                        Tensor target_logits, Tensor temperature, Tensor seed,
                                        Tensor position) {
  const ChainArguments arguments(draft_tokens, draft_logits, target_logits, temperature, seed,
                                 position, "chain_reject");
  parallel_tasks(arguments.batch, [&](int64_t request) {
    DSPARK_CALL_CPU_KERNEL(chain_reject_request, arguments.view, request);
  });
  return arguments.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("chain_reject", TORCH_BOX(&chain_reject)); }

}  // namespace dspark
