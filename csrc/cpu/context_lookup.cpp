#include "cpu/context_lookup.h"

#include <torch/csrc/stable/library.h>

#include "common/lookup_arguments.h"
#include "cpu/parallel.h"

namespace dspark {
namespace {

std::tuple<Tensor, Tensor> context_lookup(Tensor history, Tensor lengths, int64_t max_ngram,
                                          int64_t min_ngram, int64_t num_paths,
                                          int64_t path_length) {
  const LookupArguments arguments(history, lengths, max_ngram, min_ngram, num_paths, path_length,
                                  "context_lookup");
  const int64_t capacity = arguments.view.capacity;
  const int64_t workers = num_workers(arguments.batch);
  const Tensor matches = empty({workers, capacity}, ScalarType::Long);
  parallel_tasks(arguments.batch, workers, [&](int64_t worker, int64_t b) {
    DSPARK_CALL_CPU_KERNEL(context_lookup_request, arguments.view, b,
                           matches.mutable_data_ptr<int64_t>() + worker * capacity);
  });
  return arguments.outputs();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("context_lookup", TORCH_BOX(&context_lookup)); }

}  // namespace dspark
