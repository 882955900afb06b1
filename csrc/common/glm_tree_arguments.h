// The checked arguments and the outputs of glm_tree.

#pragma once

#include <tuple>

#include "common/glm_tree.h"
#include "common/launch.h"

namespace dspark {

using TreeTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

class GlmTreeArguments {
 public:
  GlmTreeArguments(const Tensor& ids, const Tensor& keys, const Tensor& logsumexp,
                   const Tensor& gate, const Tensor& root, const Tensor& table_in,
                   const Tensor& table_out, const Tensor& mix, const Tensor& depth_scale,
                   const std::optional<Tensor>& calibration,
                   const std::optional<Tensor>& temperature, const std::optional<Tensor>& paths,
                   const std::optional<Tensor>& path_scores, int64_t num_nodes, double min_score,
                   const char* op) {
    view.dtype = float_dtype(table_in, op, "table_in");
    check_shape(ids, {-1, -1, -1}, op, "ids", "have shape [B, H, C]");
    check_shape(table_in, {-1, -1}, op, "table_in", "have shape [V, R]");
    batch = ids.size(0);
    const int64_t heads = ids.size(1), candidates = ids.size(2);
    const int64_t vocab = table_in.size(0), rank = table_in.size(1);
    check(heads <= kMaxHeads && candidates <= kMaxCandidates, op, "ids",
          "have at most 16 heads and 64 candidates", shape_string(ids));
    check(rank >= 1 && rank <= kMaxRank, op, "table_in", "have 1 to 256 columns", rank);
    check(num_nodes >= 1 && num_nodes <= kMaxNodes, op, "num_nodes", "be 1 to 256", num_nodes);
    int64_t num_paths = 0, path_length = 0;
    if (paths && path_scores) {
      check_shape(*paths, {batch, -1, -1}, op, "paths", "have shape [B, P, Q]");
      num_paths = paths->size(1), path_length = num_paths > 0 ? paths->size(2) : 0;
      check(num_paths <= kMaxPaths && path_length <= kMaxPathLength, op, "paths",
            "be at most 16 of 64 tokens", shape_string(*paths));
      if (path_length == 0) num_paths = 0;
    }

    const auto kLong = ScalarType::Long, kFloat = ScalarType::Float, kInt = ScalarType::Int;
    const auto table_dtype = table_in.scalar_type();
    ids_ = whole(ids, kLong, {batch, heads, candidates}, op, "ids");
    keys_ = whole(keys, kFloat, {batch, heads, candidates}, op, "keys");
    logsumexp_ = whole(logsumexp, kFloat, {batch, heads}, op, "logsumexp");
    gate_ = whole(gate, kFloat, {batch, heads, 2 * rank}, op, "gate");
    root_ = whole(root, kLong, {batch}, op, "root");
    mix_ = whole(mix, table_dtype, {2 * rank, rank}, op, "mix");
    scale_ = whole(depth_scale, kFloat, {heads, rank}, op, "depth_scale");
    check_dtype(table_out, table_dtype, op, "table_out");
    check_shape(table_out, {vocab, rank}, op, "table_out", "have shape [V, R]");
    in_ = with_contiguous_rows(table_in), out_ = with_contiguous_rows(table_out);
    calibration_ = Optional(calibration, kFloat, {heads, 2}, op, "calibration");
    temperature_ = Optional(temperature, kFloat, {batch}, op, "temperature");
    paths_ = Optional(paths, kLong, {batch, -1, -1}, op, "paths");
    path_scores_ = Optional(path_scores, kFloat, {batch, -1, -1}, op, "path_scores");

    view.shape = {static_cast<int>(heads),
                  static_cast<int>(candidates),
                  static_cast<int>(rank),
                  static_cast<int>(num_nodes),
                  static_cast<int>(num_paths),
                  static_cast<int>(path_length),
                  vocab,
                  in_.stride(0),
                  out_.stride(0),
                  static_cast<float>(min_score)};
    view.ids = ids_.const_data_ptr<int64_t>(), view.root = root_.const_data_ptr<int64_t>(),
    view.paths = paths_.data<int64_t>();
    view.keys = keys_.const_data_ptr<float>(), view.logsumexp = logsumexp_.const_data_ptr<float>(),
    view.gate = gate_.const_data_ptr<float>();
    view.depth_scale = scale_.const_data_ptr<float>(),
    view.calibration = calibration_.data<float>();
    view.temperature = temperature_.data<float>(), view.path_scores = path_scores_.data<float>();
    view.table_in = in_.const_data_ptr(), view.table_out = out_.const_data_ptr();
    view.mix = mix_.const_data_ptr();

    tokens_ = empty({batch, num_nodes}, kLong, ids),
    parents_ = empty({batch, num_nodes}, kInt, ids);
    depths_ = empty({batch, num_nodes}, kInt, ids),
    scores_ = empty({batch, num_nodes}, kFloat, ids);
    ancestors_ = empty({batch, num_nodes, (num_nodes + 63) / 64}, kLong, ids);
    used_ = empty({batch}, kInt, ids);
    view.tokens = tokens_.mutable_data_ptr<int64_t>(),
    view.parents = parents_.mutable_data_ptr<int32_t>();
    view.depths = depths_.mutable_data_ptr<int32_t>(),
    view.scores = scores_.mutable_data_ptr<float>();
    view.ancestors = ancestors_.mutable_data_ptr<int64_t>();
    view.num_nodes = used_.mutable_data_ptr<int32_t>();
  }

  TreeTensors outputs() const { return {tokens_, parents_, depths_, ancestors_, scores_, used_}; }

  int64_t batch;
  GlmTree view{};

 private:
  Tensor ids_, keys_, logsumexp_, gate_, root_, mix_, scale_, in_, out_;
  Optional calibration_, temperature_, paths_, path_scores_;
  Tensor tokens_, parents_, depths_, ancestors_, scores_, used_;
};

}  // namespace dspark
