// Options of a draw, which several rows may share.

#pragma once

#include <vector>

#include "common/launch.h"

namespace dspark {

// An optional argument [B] with B dividing the rows: entry r / (rows / B) for row r, or null.
template <typename T>
class PerRow {
 public:
  PerRow(const std::optional<Tensor>& tensor, ScalarType dtype, int64_t rows, const char* op,
         const char* argument) {
    if (!tensor) return;
    constexpr const char* kExpected = "have shape [B] with B dividing M";
    const Tensor entries = whole(*tensor, dtype, {-1}, op, argument, kExpected);
    const int64_t count = entries.numel();
    check(rows == 0 || (count > 0 && rows % count == 0), op, argument, kExpected,
          shape_string(entries));
    const T* values = static_cast<const T*>(entries.const_data_ptr());
    rows_.reserve(rows);
    for (int64_t row = 0; row < rows; ++row) rows_.push_back(values[row / (rows / count)]);
  }
  const T* data() const { return rows_.empty() ? nullptr : rows_.data(); }

 private:
  std::vector<T> rows_;
};

}  // namespace dspark
