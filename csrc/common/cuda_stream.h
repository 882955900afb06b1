// The CUDA stream torch is on, found at run time: a link to libtorch_cuda would break the import of
// this library where torch has no CUDA.

#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>

#include "common/check.h"

namespace dspark {

inline cudaStream_t current_cuda_stream(int32_t device_index, const char* op) {
  using Getter = int32_t (*)(int32_t device_index, void** stream);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_NOW);
    return library == nullptr
               ? nullptr
               : reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  void* stream = nullptr;
  check(getter != nullptr && getter(device_index, &stream) == 0, op, "torch",
        "be a CUDA build with a current stream", "none");
  return static_cast<cudaStream_t>(stream);
}

// Reports an error of a CUDA call or of the last launch: check_cuda(cudaGetLastError(), "op"). A
// call that is no launch leaves its error behind, which the next launch would report as its own.
inline void check_cuda(cudaError_t error, const char* op) {
  if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
  check(error == cudaSuccess, op, "the launch", "succeed", cudaGetErrorString(error));
}

}  // namespace dspark
