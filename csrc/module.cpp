// What the library says about itself. The ops register themselves, one file each.

#include "cpu/isa.h"

#define DSPARK_PUBLIC extern "C" __attribute__((visibility("default")))

DSPARK_PUBLIC const char* dspark_cuda_archs() {
  return DSPARK_CUDA_ARCHS;  // such as "80;90"; empty without CUDA kernels
}

// The instruction set of the CPU kernels, for people.
DSPARK_PUBLIC const char* dspark_cpu_isa() {
  try {
    return dspark::isa_name(dspark::cpu_isa());
  } catch (...) {  // the first op says what is wrong
    return "what DSPARK_CPU asks for, which this CPU lacks";
  }
}
