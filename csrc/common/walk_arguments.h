// The checked arguments of accept_tree and typical_accept: trees, outputs, and caches.

#pragma once

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "common/launch.h"
#include "common/walk.h"

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

// An entry's dimensions are taken from the smallest stride up, and merged where they are adjacent.
inline CacheLayout cache_layout(const Tensor& cache, const char* op) {
  constexpr int kMaxDims = 8;
  struct Dim {
    int64_t stride, size;
  };
  const auto sizes = cache.sizes(), strides = cache.strides();
  const int rank = static_cast<int>(sizes.size());
  if (rank - 2 > kMaxDims) fail(op, "caches", "have at most 10 dimensions", rank);
  Dim dims[kMaxDims];
  int count = 0;
  for (int d = 2; d < rank; ++d) {
    if (sizes[d] == 1) continue;
    int i = count++;
    for (; i > 0 && dims[i - 1].stride > strides[d]; --i) dims[i] = dims[i - 1];
    dims[i] = {strides[d], sizes[d]};
  }
  Dim run{1, 1}, outer{0, 1};
  for (int d = 0; d < count; ++d) {
    if (outer.size == 1 && dims[d].stride == run.size) {
      run.size *= dims[d].size;
    } else if (outer.size == 1) {
      outer = dims[d];
    } else if (dims[d].stride == outer.stride * outer.size) {
      outer.size *= dims[d].size;
    } else {
      fail(op, "caches", "have entries with at most one gap between dimensions",
           shape_string(cache));
    }
  }
  const int64_t item = cache.element_size();
  return {static_cast<char*>(cache.mutable_data_ptr()),
          strides[0] * item,
          strides[1] * item,
          run.size * item,
          outer.size,
          outer.stride * item};
}

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

inline Caches::Caches(int64_t batch, const std::vector<Tensor>& caches, const Tensor& cache_seqlens,
                      const std::optional<Tensor>& block_table, const char* op)
    : seqlens_(whole(cache_seqlens, ScalarType::Int, {batch}, op, "cache_seqlens")),
      table_(block_table, ScalarType::Int, {batch, -1}, op, "block_table") {
  slots = {seqlens_.const_data_ptr<int32_t>(), table_.data<int32_t>(), 0, 0,
           block_table ? block_table->size(1) : 0};
  if (caches.empty() || batch == 0) return;
  slots.rows = caches[0].size(0), slots.row_slots = caches[0].size(1);
  check(block_table || slots.rows == batch, op, "caches", "have one row per request", slots.rows);
  layouts.reserve(caches.size());
  for (const Tensor& cache : caches) {
    const auto sizes = cache.sizes();
    if (sizes.size() < 2 || sizes[0] != slots.rows || sizes[1] != slots.row_slots) {
      fail(op, "caches", "have the same first two sizes", shape_string(cache));
    }
    layouts.push_back(cache_layout(cache, op));
  }
  if (slots.row_slots == 0) layouts.clear();
}

}  // namespace dspark
