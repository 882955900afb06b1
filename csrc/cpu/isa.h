// Which instruction set the CPU kernels use. The sources in csrc/cpu/kernels are compiled once per
// instruction set, each into its own namespace; a launcher picks one of them at run time.

#pragma once

namespace dspark {

enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The best one this CPU has, or the one named by DSPARK_CPU; throws if the CPU lacks that one.
Isa cpu_isa();
const char* isa_name(Isa isa);

#ifdef __x86_64__
// Declares a kernel in every instruction set's namespace.
#define DSPARK_CPU_KERNEL(...) \
  namespace portable {         \
  __VA_ARGS__;                 \
  }                            \
  namespace avx2 {             \
  __VA_ARGS__;                 \
  }                            \
  namespace avx512 {           \
  __VA_ARGS__;                 \
  }                            \
  namespace avx512bf16 {       \
  __VA_ARGS__;                 \
  }                            \
  namespace amx {              \
  __VA_ARGS__;                 \
  }
// Calls the kernel of the chosen instruction set.
#define DSPARK_CALL_CPU_KERNEL(kernel, ...)                                              \
  (::dspark::cpu_isa() == ::dspark::Isa::kAmx          ? amx::kernel(__VA_ARGS__)        \
   : ::dspark::cpu_isa() == ::dspark::Isa::kAvx512Bf16 ? avx512bf16::kernel(__VA_ARGS__) \
   : ::dspark::cpu_isa() == ::dspark::Isa::kAvx512     ? avx512::kernel(__VA_ARGS__)     \
   : ::dspark::cpu_isa() == ::dspark::Isa::kAvx2       ? avx2::kernel(__VA_ARGS__)       \
                                                       : portable::kernel(__VA_ARGS__))
#else
#define DSPARK_CPU_KERNEL(...) \
  namespace portable {         \
  __VA_ARGS__;                 \
  }
#define DSPARK_CALL_CPU_KERNEL(kernel, ...) (::dspark::cpu_isa(), portable::kernel(__VA_ARGS__))
#endif

}  // namespace dspark
