// From a run-time dtype to a C++ type.

#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include "common/check.h"

namespace dspark {

template <typename T>
struct Type {
  using type = T;
};

// Calls f(Type<T>{}) with T = float, BFloat16 or Half:
//   dispatch_float(x.scalar_type(), "op", "x", [&](auto type) {
//     using T = typename decltype(type)::type;
//   });
template <typename F>
decltype(auto) dispatch_float(torch::headeronly::ScalarType dtype, const char* op,
                              const char* argument, F&& f) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return f(Type<float>{});
    case ScalarType::BFloat16:
      return f(Type<torch::headeronly::BFloat16>{});
    case ScalarType::Half:
      return f(Type<torch::headeronly::Half>{});
    default:
      fail(op, argument, "have dtype Float, BFloat16 or Half", torch::headeronly::toString(dtype));
  }
}

}  // namespace dspark
