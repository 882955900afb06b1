#include "cpu/glm_tree.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/launch.h"
#include "cpu/parallel.h"

namespace dspark {
namespace {

constexpr const char* kOp = "glm_tree";

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> glm_tree(
    Tensor ids, Tensor keys, Tensor logsumexp, Tensor gate, Tensor root, Tensor table_in,
    Tensor table_out, Tensor mix, Tensor depth_scale, std::optional<Tensor> calibration,
    std::optional<Tensor> temperature, std::optional<Tensor> paths,
    std::optional<Tensor> path_scores, int64_t num_nodes, double min_score) {
  GlmTree p{};
  p.dtype = float_dtype(table_in, kOp, "table_in");
  check_shape(ids, {-1, -1, -1}, kOp, "ids", "have shape [B, H, C]");
  check_shape(table_in, {-1, -1}, kOp, "table_in", "have shape [V, R]");
  const int64_t batch = ids.size(0), heads = ids.size(1), candidates = ids.size(2);
  const int64_t vocab = table_in.size(0), rank = table_in.size(1);
  check(heads <= kMaxHeads && candidates <= kMaxCandidates, kOp, "ids",
        "have at most 16 heads and 64 candidates", shape_string(ids));
  check(rank >= 1 && rank <= kMaxRank, kOp, "table_in", "have 1 to 256 columns", rank);
  check(num_nodes >= 1 && num_nodes <= kMaxNodes, kOp, "num_nodes", "be 1 to 256", num_nodes);
  int64_t num_paths = 0, path_length = 0;
  if (paths && path_scores) {
    check_shape(*paths, {batch, -1, -1}, kOp, "paths", "have shape [B, P, Q]");
    num_paths = paths->size(1), path_length = num_paths > 0 ? paths->size(2) : 0;
    check(num_paths <= kMaxPaths && path_length <= kMaxPathLength, kOp, "paths",
          "be at most 16 of 32 tokens", shape_string(*paths));
    if (path_length == 0) num_paths = 0;
  }

  const auto kLong = ScalarType::Long, kFloat = ScalarType::Float, kInt = ScalarType::Int;
  const auto table_dtype = table_in.scalar_type();
  const Tensor ids_ = whole(ids, kLong, {batch, heads, candidates}, kOp, "ids");
  const Tensor keys_ = whole(keys, kFloat, {batch, heads, candidates}, kOp, "keys");
  const Tensor logsumexp_ = whole(logsumexp, kFloat, {batch, heads}, kOp, "logsumexp");
  const Tensor gate_ = whole(gate, kFloat, {batch, heads, 2 * rank}, kOp, "gate");
  const Tensor root_ = whole(root, kLong, {batch}, kOp, "root");
  const Tensor mix_ = whole(mix, table_dtype, {2 * rank, rank}, kOp, "mix");
  const Tensor scale_ = whole(depth_scale, kFloat, {heads, rank}, kOp, "depth_scale");
  check_dtype(table_out, table_dtype, kOp, "table_out");
  check_shape(table_out, {vocab, rank}, kOp, "table_out", "have shape [V, R]");
  const Tensor in_ = with_contiguous_rows(table_in), out_ = with_contiguous_rows(table_out);
  const Optional calibration_(calibration, kFloat, {heads}, kOp, "calibration");
  const Optional temperature_(temperature, kFloat, {batch}, kOp, "temperature");
  const Optional paths_(paths, kLong, {batch, -1, -1}, kOp, "paths");
  const Optional path_scores_(path_scores, kFloat, {batch, -1, -1}, kOp, "path_scores");

  p.shape = {static_cast<int>(heads),
             static_cast<int>(candidates),
             static_cast<int>(rank),
             static_cast<int>(num_nodes),
             static_cast<int>(num_paths),
             static_cast<int>(path_length),
             vocab,
             in_.stride(0),
             out_.stride(0),
             static_cast<float>(min_score)};
  p.ids = ids_.const_data_ptr<int64_t>(), p.root = root_.const_data_ptr<int64_t>(),
  p.paths = paths_.data<int64_t>();
  p.keys = keys_.const_data_ptr<float>(), p.logsumexp = logsumexp_.const_data_ptr<float>(),
  p.gate = gate_.const_data_ptr<float>();
  p.depth_scale = scale_.const_data_ptr<float>(), p.calibration = calibration_.data<float>();
  p.temperature = temperature_.data<float>(), p.path_scores = path_scores_.data<float>();
  p.table_in = in_.const_data_ptr(), p.table_out = out_.const_data_ptr();
  p.mix = mix_.const_data_ptr();

  Tensor tokens = empty({batch, num_nodes}, kLong), parents = empty({batch, num_nodes}, kInt);
  Tensor depths = empty({batch, num_nodes}, kInt), scores = empty({batch, num_nodes}, kFloat);
  Tensor ancestors = empty({batch, num_nodes, (num_nodes + 63) / 64}, kLong);
  Tensor used = empty({batch}, kInt);
  p.tokens = tokens.mutable_data_ptr<int64_t>(), p.parents = parents.mutable_data_ptr<int32_t>();
  p.depths = depths.mutable_data_ptr<int32_t>(), p.scores = scores.mutable_data_ptr<float>();
  p.ancestors = ancestors.mutable_data_ptr<int64_t>();
  p.num_nodes = used.mutable_data_ptr<int32_t>();

  const int64_t bytes = GlmWorkspace::bytes(p.shape);
  const Tensor workspace = empty({num_workers(batch) * bytes}, ScalarType::Byte);
  char* const memory = static_cast<char*>(workspace.mutable_data_ptr());
  parallel_tasks(batch, [&](int64_t worker, int64_t request) {
    DSPARK_CALL_CPU_KERNEL(glm_tree_request, p, request, memory + worker * bytes);
  });
  return {tokens, parents, depths, ancestors, scores, used};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dspark, CPU, m) { m.impl("glm_tree", TORCH_BOX(&glm_tree)); }

}  // namespace dspark
