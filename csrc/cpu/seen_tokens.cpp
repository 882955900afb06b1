#include <torch/csrc/stable/library.h>

#include "common/seen_arguments.h"
#include "cpu/parallel.h"
#include "cpu/serial_group.h"

namespace dspark {
namespace {

Tensor seen_tokens(Tensor history, Tensor lengths, int64_t vocab_size, std::optional<Tensor> tokens,
                   std::optional<Tensor> ancestors, std::optional<Tensor> slots) {
  const SeenArguments arguments(history, lengths, vocab_size, tokens, ancestors, slots,
                                "seen_tokens");
  const int words = arguments.view.words;
  const int64_t workers = num_workers(arguments.rows);
  std::vector<uint32_t> bits(workers * words * 2);
  parallel_tasks(arguments.rows, workers, [&](int64_t worker, int64_t row) {
    SerialGroup group;
    seen_tokens_row(group, arguments.view, row, 0, words, bits.data() + worker * words * 2);
  });
  return arguments.output();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("seen_tokens", TORCH_BOX(&seen_tokens)); }

}  // namespace dspark
