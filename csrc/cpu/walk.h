// What accept_tree and typical_accept share: their trees, their outputs, and the compaction.

#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "common/walk.h"
#include "cpu/launch.h"
#include "cpu/parallel.h"

namespace dspark {

using WalkTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // path, tokens, accepted, last

// The trees of a batch and the outputs of their walks.
class Walks {
 public:
  Walks(const Tensor& tokens, const Tensor& parents, const Tensor& num_nodes,
        const Tensor& target_tokens, int64_t max_depth, const char* op)
      : batch(parents.dim() == 2 ? parents.size(0) : 0),
        nodes(parents.dim() == 2 ? parents.size(1) : 0),
        max_depth_(max_depth),
        tokens_(whole(tokens, ScalarType::Long, {batch, nodes}, op, "tokens")),
        parents_(whole(parents, ScalarType::Int, {batch, nodes}, op, "parents")),
        num_nodes_(whole(num_nodes, ScalarType::Int, {batch}, op, "num_nodes")),
        target_(whole(target_tokens, ScalarType::Long, {batch, nodes}, op, "target_tokens")),
        path_(empty({batch, max_depth + 1}, ScalarType::Int)),
        emitted_(empty({batch, max_depth + 1}, ScalarType::Long)),
        accepted_(empty({batch}, ScalarType::Int)),
        last_(empty({batch}, ScalarType::Int)) {
    check(nodes >= 1 && nodes <= kMaxNodes, op, "tokens", "have 1 to 256 nodes", nodes);
    check(max_depth >= 0, op, "max_depth", "be >= 0", max_depth);
  }

  TreeView tree(int64_t b) const {
    const int used = num_nodes_.const_data_ptr<int32_t>()[b];
    return {tokens_.const_data_ptr<int64_t>() + b * nodes,
            parents_.const_data_ptr<int32_t>() + b * nodes, static_cast<int>(nodes),
            std::clamp(used, 1, static_cast<int>(nodes))};
  }
  const int64_t* target(int64_t b) const { return target_.const_data_ptr<int64_t>() + b * nodes; }
  WalkOutputs outputs(int64_t b) const {
    return {path_.mutable_data_ptr<int32_t>() + b * (max_depth_ + 1),
            emitted_.mutable_data_ptr<int64_t>() + b * (max_depth_ + 1),
            accepted_.mutable_data_ptr<int32_t>() + b, last_.mutable_data_ptr<int32_t>() + b};
  }
  WalkTensors tensors() const { return {path_, emitted_, accepted_, last_}; }

  // A walk deeper than the tree has nodes would only go round in circles.
  int depth_limit() const { return static_cast<int>(std::min(max_depth_, nodes - 1)); }
  int64_t max_depth() const { return max_depth_; }

  const int64_t batch, nodes;

 private:
  int64_t max_depth_;
  Tensor tokens_, parents_, num_nodes_, target_, path_, emitted_, accepted_, last_;
};

// Moves the accepted entries of every request in every cache.
void compact_caches(const Walks& walks, const std::vector<Tensor>& caches,
                    const Tensor& cache_seqlens, const std::optional<Tensor>& block_table,
                    const char* op);

}  // namespace dspark
