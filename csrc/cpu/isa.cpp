#include "cpu/isa.h"

#include <cstdlib>
#include <string>

#include "common/check.h"

namespace dspark {
namespace {

Isa best_isa() {
#ifdef __x86_64__
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bf16")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return Isa::kAvx2;
  }
#endif
  return Isa::kPortable;
}

Isa choose_isa() {
  const Isa best = best_isa();
  const char* requested = std::getenv("DSPARK_CPU");
  if (requested == nullptr) return best;
  const char* names[] = {"portable", "avx2", "avx512"};
  for (int i = 0; i <= static_cast<int>(best); ++i) {
    if (std::string(requested) == names[i]) return static_cast<Isa>(i);
  }
  const std::string expected = std::string("be portable, avx2 or avx512, and not above the ") +
                               names[static_cast<int>(best)] + " this CPU has";
  fail("dspark", "DSPARK_CPU", expected.c_str(), requested);
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

}  // namespace dspark
