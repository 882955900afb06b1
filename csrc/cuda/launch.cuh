// What every launcher of a CUDA kernel does.

#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <initializer_list>
#include <optional>
#include <utility>

#include "common/cuda_stream.h"
#include "common/launch.h"
#include "common/types.h"

namespace dspark {

constexpr int kDefaultSharedMemory = 48 << 10;  // what a kernel may use without asking for more

// Throws unless every given tensor is on the device of the first one.
inline void check_device(const char* op, std::initializer_list<std::optional<Tensor>> tensors) {
  const auto device = tensors.begin()->value().device();
  for (const auto& tensor : tensors) {
    check(!tensor || (tensor->is_cuda() && tensor->get_device_index() == device.index()), op,
          "tensors", "be on one CUDA device", "another device");
  }
}

// The device of a tensor, current while this lives, and the stream torch is on there.
class CurrentDevice {
 public:
  CurrentDevice(const Tensor& tensor, const char* op)
      : guard_(tensor.get_device_index()),
        stream(current_cuda_stream(tensor.get_device_index(), op)) {}

 private:
  torch::stable::accelerator::DeviceGuard guard_;

 public:
  const cudaStream_t stream;
};

// Calls f with a value of the element type that a dtype stands for.
template <typename F>
void with_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kBf16:
      return f(Bf16{});
    case DType::kFp16:
      return f(Fp16{});
    default:
      return f(float{});
  }
}

inline int device_attribute(cudaDeviceAttr attribute, const char* op) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), op);
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), op);
  return value;
}

}  // namespace dspark
