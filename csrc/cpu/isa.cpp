#include "cpu/isa.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "common/check.h"

namespace dspark {
namespace {

#ifdef __x86_64__
// Linux gives a process the registers of AMX if it asks.
bool may_use_amx() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

Isa best_isa() {
#ifdef __x86_64__
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  const bool amx = bf16 && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16");
  if (amx && may_use_amx()) return Isa::kAmx;
  if (bf16) return Isa::kAvx512Bf16;
  if (avx512) return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

Isa choose_isa() {
  const Isa best = best_isa();
  const char* requested = std::getenv("DSPARK_CPU");
  if (requested == nullptr) return best;
  for (int i = 0; i <= static_cast<int>(best); ++i) {
    const Isa isa = static_cast<Isa>(i);
    if (std::string(requested) == isa_name(isa)) return isa;
  }
  const std::string expected =
      std::string("be portable, avx2, avx512, avx512bf16 or amx, and not above the ") +
      isa_name(best) + " this CPU has";
  fail("dspark", "DSPARK_CPU", expected.c_str(), requested);
}

}  // namespace

const char* isa_name(Isa isa) {
  const char* names[] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};
  return names[static_cast<int>(isa)];
}

Isa cpu_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

}  // namespace dspark
