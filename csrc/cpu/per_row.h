// Options of a draw, which several rows may share.

#pragma once

#include <vector>

#include "common/launch.h"
#include "cpu/penalty.h"

namespace dspark {

// How many rows each entry of an argument serves.
inline int64_t rows_per_entry(const Tensor& entries, int64_t rows, const char* op,
                              const char* argument, const char* expected) {
  const int64_t count = entries.size(0);
  check(rows == 0 || (count > 0 && rows % count == 0), op, argument, expected,
        shape_string(entries));
  return rows == 0 ? 1 : rows / count;
}

// An optional argument [B] with B dividing the rows: entry r / (rows / B) for row r, or null.
template <typename T>
class PerRow {
 public:
  PerRow(const std::optional<Tensor>& tensor, ScalarType dtype, int64_t rows, const char* op,
         const char* argument) {
    if (!tensor) return;
    constexpr const char* kExpected = "have shape [B] with B dividing M";
    const Tensor entries = whole(*tensor, dtype, {-1}, op, argument, kExpected);
    const int64_t shared = rows_per_entry(entries, rows, op, argument, kExpected);
    const T* values = static_cast<const T*>(entries.const_data_ptr());
    rows_.reserve(rows);
    for (int64_t row = 0; row < rows; ++row) rows_.push_back(values[row / shared]);
  }
  const T* data() const { return rows_.empty() ? nullptr : rows_.data(); }

 private:
  std::vector<T> rows_;
};

// The checked arguments `seen` and `repetition_penalty`.
class PenaltyArguments {
 public:
  PenaltyArguments(const std::optional<Tensor>& seen, const std::optional<Tensor>& penalty,
                   int64_t rows, const char* op)
      : penalty_(penalty, ScalarType::Float, rows, op, "repetition_penalty") {
    check(seen.has_value() == penalty.has_value(), op, "seen", "come with repetition_penalty",
          "one of them");
    if (!seen) return;
    constexpr const char* kExpected = "have shape [R, words] with R dividing M";
    seen_ = whole(*seen, ScalarType::Long, {-1, -1}, op, "seen", kExpected);
    view = {static_cast<const int64_t*>(seen_->const_data_ptr()), seen_->size(1),
            rows_per_entry(*seen_, rows, op, "seen", kExpected), penalty_.data()};
  }

  Penalty view{};

 private:
  PerRow<float> penalty_;
  std::optional<Tensor> seen_;
};

}  // namespace dspark
