// The checked arguments and the outputs of best_slots.

#pragma once

#include <tuple>

#include "common/best_slots.h"
#include "common/launch.h"

namespace dspark {

using SlotTensors = std::tuple<Tensor, Tensor, Tensor>;  // slots, rows, counts

class BestSlotsArguments {
 public:
  BestSlotsArguments(const Tensor& scores, const Tensor& num_nodes, const Tensor& lengths,
                     const Tensor& limit, const Tensor& done, int64_t nodes, int64_t total,
                     const char* op) {
    check_dtype(scores, ScalarType::Float, op, "scores");
    check_shape(scores, {-1, -1}, op, "scores", "have shape [B, M]");
    const int64_t batch = scores.size(0), most = scores.size(1);
    check(nodes >= 1 && nodes <= most, op, "nodes", "be 1 to the number of columns of scores",
          nodes);
    check(batch * nodes < (1 << 30), op, "scores", "have fewer than 2^30 slots", batch * nodes);
    check(total >= 1 && total <= batch * nodes, op, "total", "be 1 to B · nodes", total);
    scores_ = with_contiguous_rows(scores);
    num_nodes_ = whole(num_nodes, ScalarType::Int, {batch}, op, "num_nodes");
    lengths_ = whole(lengths, ScalarType::Int, {batch}, op, "lengths");
    limit_ = whole(limit, ScalarType::Int, {batch}, op, "limit");
    done_ = whole(done, ScalarType::Bool, {batch}, op, "done");
    slots_ = empty({total}, ScalarType::Long, scores);
    rows_ = empty({batch, nodes}, ScalarType::Long, scores);
    counts_ = empty({batch}, ScalarType::Int, scores);
    view = {scores_.const_data_ptr<float>(),
            scores_.stride(0),
            num_nodes_.const_data_ptr<int32_t>(),
            lengths_.const_data_ptr<int32_t>(),
            limit_.const_data_ptr<int32_t>(),
            static_cast<const uint8_t*>(done_.const_data_ptr()),
            static_cast<int>(batch),
            static_cast<int>(nodes),
            static_cast<int>(total),
            slots_.mutable_data_ptr<int64_t>(),
            rows_.mutable_data_ptr<int64_t>(),
            counts_.mutable_data_ptr<int32_t>()};
  }

  SlotTensors outputs() const { return {slots_, rows_, counts_}; }

  BestSlots view{};

 private:
  Tensor scores_, num_nodes_, lengths_, limit_, done_, slots_, rows_, counts_;
};

}  // namespace dspark
