// What every launcher does with its tensors.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <vector>

#include "common/check.h"
#include "common/types.h"

namespace dspark {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType float_dtype(const Tensor& tensor, const char* op, const char* argument) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFp32;
    case ScalarType::BFloat16:
      return DType::kBf16;
    case ScalarType::Half:
      return DType::kFp16;
    default:
      fail(op, argument, "have dtype Float, BFloat16 or Half",
           torch::headeronly::toString(tensor.scalar_type()));
  }
}

// An empty tensor on the device of another one.
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype, const Tensor& like) {
  const std::vector<int64_t> shape(sizes);
  return torch::stable::empty({shape.data(), shape.size()}, dtype, std::nullopt, like.device());
}

inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  const std::vector<int64_t> shape(sizes);
  return torch::stable::empty({shape.data(), shape.size()}, dtype);
}

// A tensor of known dtype and shape, contiguous.
inline Tensor whole(const Tensor& tensor, ScalarType dtype, std::initializer_list<int64_t> shape,
                    const char* op, const char* argument,
                    const char* expected = "have the shape of its documentation") {
  check_dtype(tensor, dtype, op, argument);
  check_shape(tensor, shape, op, argument, expected);
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// The tensor itself if the elements of its last dimension are adjacent, else a copy.
inline Tensor with_contiguous_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (tensor.size(last) <= 1 || tensor.stride(last) == 1) return tensor;
  return torch::stable::contiguous(tensor);
}

// An optional argument: checked, contiguous, and null if it is absent.
class Optional {
 public:
  Optional() = default;
  Optional(const std::optional<Tensor>& tensor, ScalarType dtype,
           std::initializer_list<int64_t> shape, const char* op, const char* argument,
           const char* expected = "have the shape of its documentation") {
    if (!tensor) return;
    tensor_ = whole(*tensor, dtype, shape, op, argument, expected);
  }
  template <typename T>
  const T* data() const {
    return tensor_ ? static_cast<const T*>(tensor_->const_data_ptr()) : nullptr;
  }

 private:
  std::optional<Tensor> tensor_;
};

}  // namespace dspark
