// The CUDA runtime that the library's launchers call, a launch for Triton's, and the little that
// the library asks of torch's CUDA, over the emulator. A tensor on the CPU counts as one on a GPU.

#include <stddef.h>
#include <string.h>

#include <string>
#include <utility>

#include "machine.h"

namespace {

// As in the CUDA headers, which this is compiled without.
struct dim3 {
  unsigned x, y, z;
};
struct CudaFunctionAttributes {
  size_t shared_bytes;  // the first of many
};
constexpr int kSuccess = 0, kLaunchFailure = 719, kMaxDynamicSharedMemory = 8;
constexpr int kMaxSharedMemoryOptIn = 97;

constexpr int kSharedLimit = 227 << 10;  // of an H200

struct Kernel {
  std::string name;
  int64_t dynamic_limit = 48 << 10;
};

std::map<std::string, ptx::Function> functions;
std::map<const void*, Kernel> kernels;          // by the address of their stub
std::string last_error, error_text, ptx_error;  // not reported yet; the last of CUDA; of ptx_*
struct {
  dim3 blocks, threads;
  size_t dynamic_bytes;
  void* stream;
} configuration;
std::map<std::string, int64_t> launches;  // of each function
std::string clock_file;

int failed(std::string what) {
  last_error = error_text = std::move(what);
  return kLaunchFailure;
}

const ptx::Function& find(const std::string& name) {
  const auto found = functions.find(name);
  if (found == functions.end()) throw std::runtime_error("no PTX of " + name);
  return found->second;
}

// Null, or what went wrong.
template <typename F>
const char* guarded(const F& f) {
  try {
    f();
    return nullptr;
  } catch (const std::exception& error) {
    ptx_error = error.what();
    return ptx_error.c_str();
  }
}

}  // namespace

extern "C" {

// Both return null, or what is wrong. The functions of a module may then be launched by name.
const char* ptx_load(const char* text) {
  return guarded([&] { functions.merge(ptx::parse(text)); });
}

const char* ptx_launch(const char* name, const int64_t blocks[3], int64_t threads,
                       int64_t dynamic_bytes, void** arguments) {
  return guarded([&] {
    const ptx::Function& function = find(name);
    ptx::Launch launch{&function,
                       {blocks[0], blocks[1], blocks[2]},
                       {threads, 1, 1},
                       dynamic_bytes,
                       std::vector<char>(function.parameter_bytes)};
    if (launch.shared_bytes() > kSharedLimit) {
      throw std::runtime_error(function.name + ": more shared memory than there is");
    }
    for (size_t i = 0; i < function.parameters.size(); ++i) {
      const auto [offset, bytes] = function.parameters[i];
      memcpy(launch.parameters.data() + offset, arguments[i], bytes);
    }
    ptx::run(launch, ++launches[name], clock_file);
  });
}

// From now on, clocks report to the end of this file; to none if it is empty.
void ptx_clock(const char* file) { clock_file = file; }

// How many launches there were of functions with this in their name.
int64_t ptx_launches(const char* part) {
  int64_t sum = 0;
  for (const auto& [name, count] : launches) {
    if (name.find(part) != std::string::npos) sum += count;
  }
  return sum;
}

// -- what nvcc puts into a program

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, void*, void*,
                            void*, void*, int*) {
  kernels[stub].name = name;
}
int __cudaGetKernel(const void** kernel, const void* stub) {
  *kernel = stub;
  return kSuccess;
}
unsigned __cudaPushCallConfiguration(dim3 blocks, dim3 threads, size_t dynamic_bytes,
                                     void* stream) {
  configuration = {blocks, threads, dynamic_bytes, stream};
  return 0;
}
int __cudaPopCallConfiguration(dim3* blocks, dim3* threads, size_t* dynamic_bytes, void** stream) {
  *blocks = configuration.blocks, *threads = configuration.threads;
  *dynamic_bytes = configuration.dynamic_bytes, *stream = configuration.stream;
  return kSuccess;
}
int cudaLaunchKernel(const void* stub, dim3 blocks, dim3 threads, void** arguments,
                     size_t dynamic_bytes, void*) {
  const Kernel& kernel = kernels.at(stub);
  if (static_cast<int64_t>(dynamic_bytes) > kernel.dynamic_limit) {
    return failed(kernel.name + ": more dynamic shared memory than was asked for");
  }
  const int64_t grid[] = {blocks.x, blocks.y, blocks.z};
  if (threads.y != 1 || threads.z != 1) return failed(kernel.name + ": threads in a plane");
  const char* wrong = ptx_launch(kernel.name.c_str(), grid, threads.x,
                                 static_cast<int64_t>(dynamic_bytes), arguments);
  return wrong == nullptr ? kSuccess : failed(wrong);
}
int __cudaLaunchKernel(const void* stub, dim3 blocks, dim3 threads, void** arguments,
                       size_t dynamic_bytes, void* stream) {  // since CUDA 13
  return cudaLaunchKernel(stub, blocks, threads, arguments, dynamic_bytes, stream);
}

// -- what our launchers call

int cudaFuncGetAttributes(CudaFunctionAttributes* attributes, const void* stub) {
  attributes->shared_bytes = find(kernels.at(stub).name).shared_bytes;
  return kSuccess;
}
int cudaFuncSetAttribute(const void* stub, int attribute, int value) {
  Kernel& kernel = kernels.at(stub);
  if (attribute != kMaxDynamicSharedMemory) return failed("an attribute not known here");
  if (value + find(kernel.name).shared_bytes > kSharedLimit) {
    return failed(kernel.name + ": more shared memory than there is");
  }
  kernel.dynamic_limit = value;
  return kSuccess;
}
int cudaGetDevice(int* device) {
  *device = 0;
  return kSuccess;
}
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  if (attribute != kMaxSharedMemoryOptIn) return failed("an attribute not known here");
  *value = kSharedLimit;
  return kSuccess;
}
int cudaGetLastError() { return std::exchange(last_error, {}).empty() ? kSuccess : kLaunchFailure; }
const char* cudaGetErrorString(int) { return error_text.c_str(); }

int32_t aoti_torch_device_type_cuda() { return 0; }  // the CPU's
int32_t aoti_torch_create_device_guard(int32_t, void** guard) {
  *guard = nullptr;
  return 0;
}
int32_t aoti_torch_delete_device_guard(void*) { return 0; }
int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

}  // extern "C"
