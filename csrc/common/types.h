// Element types of the kernels, which know nothing of torch.

#pragma once

#include <stdint.h>

// Functions that are no templates are always inlined: the CPU kernels are compiled once per
// instruction set, and the linker must not give one set's copy to another.
#ifdef __CUDACC__
#define DSPARK_HOST_DEVICE __host__ __device__
#define DSPARK_FORCE_INLINE __host__ __device__ __forceinline__
#else
#define DSPARK_HOST_DEVICE
#define DSPARK_FORCE_INLINE inline __attribute__((always_inline))
#endif

namespace dspark {

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};
struct Fp8 {  // e4m3fn
  uint8_t bits;
};

enum class DType { kFp32, kBf16, kFp16, kFp8 };

}  // namespace dspark
