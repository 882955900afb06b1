// Element types of the kernels, which know nothing of torch.

#pragma once

#include <stdint.h>

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
