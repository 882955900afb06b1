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

// The tensors of a WalkBatch.
class Walks {
 public:
  Walks(const Tensor& tokens, const Tensor& parents, const Tensor& num_nodes,
        const Tensor& target_tokens, int64_t max_depth, const char* op)
      : batch(parents.dim() == 2 ? parents.size(0) : 0),
        nodes(parents.dim() == 2 ? parents.size(1) : 0),
        tokens_(whole(tokens, ScalarType::Long, {batch, nodes}, op, "tokens")),
        parents_(whole(parents, ScalarType::Int, {batch, nodes}, op, "parents")),
        num_nodes_(whole(num_nodes, ScalarType::Int, {batch}, op, "num_nodes")),
        target_(whole(target_tokens, ScalarType::Long, {batch, nodes}, op, "target_tokens")),
        path_(empty({batch, max_depth + 1}, ScalarType::Int, tokens)),
        emitted_(empty({batch, max_depth + 1}, ScalarType::Long, tokens)),
        accepted_(empty({batch}, ScalarType::Int, tokens)),
        last_(empty({batch}, ScalarType::Int, tokens)) {
    check(nodes >= 1 && nodes <= kMaxNodes, op, "tokens", "have 1 to 256 nodes", nodes);
    check(max_depth >= 0 && max_depth < (1 << 30), op, "max_depth", "be from 0 to 2^30", max_depth);
    view = {tokens_.const_data_ptr<int64_t>(),
            target_.const_data_ptr<int64_t>(),
            parents_.const_data_ptr<int32_t>(),
            num_nodes_.const_data_ptr<int32_t>(),
            static_cast<int>(nodes),
            static_cast<int>(max_depth),
            path_.mutable_data_ptr<int32_t>(),
            emitted_.mutable_data_ptr<int64_t>(),
            accepted_.mutable_data_ptr<int32_t>(),
            last_.mutable_data_ptr<int32_t>()};
  }

  WalkTensors tensors() const { return {path_, emitted_, accepted_, last_}; }

  const int64_t batch, nodes;
  WalkBatch view;

 private:
  Tensor tokens_, parents_, num_nodes_, target_, path_, emitted_, accepted_, last_;
};

// One slot's entry in a cache: `runs` runs of bytes, run_stride apart.
struct CacheLayout {
  char* data;
  int64_t row_stride, slot_stride, run_bytes, runs, run_stride;
};

// The caches of a batch: where its slots lie, and the layout of each cache.
class Caches {
 public:
  Caches(int64_t batch, const std::vector<Tensor>& caches, const Tensor& cache_seqlens,
         const std::optional<Tensor>& block_table, const char* op);

  SlotBatch slots;
  std::vector<CacheLayout> layouts;  // none where there is nothing to move

 private:
  Tensor seqlens_;
  Optional table_;
};

// Moves the accepted entries of every request in every cache.
void compact_caches(const WalkBatch& walks, int64_t batch, const Caches& caches);

}  // namespace dspark
