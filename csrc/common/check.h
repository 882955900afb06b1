// Errors of the launchers: "op: argument must <expected>, got <got>".

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace dspark {

template <typename... Got>
[[noreturn]] void fail(const char* op, const char* argument, const char* expected,
                       const Got&... got) {
  std::ostringstream message;
  message << op << ": " << argument << " must " << expected << ", got ";
  (message << ... << got);
  throw std::runtime_error(message.str());
}

template <typename... Got>
void check(bool condition, const char* op, const char* argument, const char* expected,
           const Got&... got) {
  if (!condition) [[unlikely]] {
    fail(op, argument, expected, got...);
  }
}

inline std::string shape_string(const torch::stable::Tensor& tensor) {
  std::ostringstream text;
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "[") << tensor.size(i);
  text << (tensor.dim() ? "]" : "[]");
  return text.str();
}

// Checks the shape of a tensor; -1 stands for any size.
inline void check_shape(const torch::stable::Tensor& tensor, std::initializer_list<int64_t> shape,
                        const char* op, const char* argument, const char* expected) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t i = 0;
  for (int64_t size : shape) {
    same = same && (size < 0 || tensor.size(i) == size);
    ++i;
  }
  if (!same) [[unlikely]] {
    fail(op, argument, expected, shape_string(tensor));
  }
}

inline void check_dtype(const torch::stable::Tensor& tensor, torch::headeronly::ScalarType expected,
                        const char* op, const char* argument) {
  if (tensor.scalar_type() != expected) [[unlikely]] {
    const std::string wanted = std::string("have dtype ") + torch::headeronly::toString(expected);
    fail(op, argument, wanted.c_str(), torch::headeronly::toString(tensor.scalar_type()));
  }
}

}  // namespace dspark
