#include <torch/csrc/stable/library.h>

#include "common/advance_arguments.h"
#include "cpu/serial_group.h"

namespace dspark {
namespace {

Tensor advance_step(Tensor tokens, Tensor num_tokens, Tensor node, std::optional<Tensor> rows,
                    std::vector<Tensor> hidden, Tensor stop, Tensor limit, Tensor history,
                    Tensor lengths, Tensor cache_seqlens, Tensor root, Tensor done,
                    std::vector<Tensor> kept) {
  const AdvanceArguments arguments(tokens, num_tokens, node, rows, hidden, stop, limit, history,
                                   lengths, cache_seqlens, root, done, kept, "advance_step");
  SerialGroup group;
  for (int64_t b = 0; b < arguments.batch; ++b) advance_request(group, arguments.view, b);
  return arguments.output();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("advance_step", TORCH_BOX(&advance_step)); }

}  // namespace dspark
