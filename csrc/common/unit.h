// Memory as it is copied: packets of 16, 4 or 1 bytes.

#pragma once

#include <stdint.h>

#include <type_traits>

namespace dspark {

template <int kBytes>
struct alignas(kBytes) Unit {
  using Word = std::conditional_t<kBytes % 4 == 0, uint32_t, uint8_t>;
  Word words[kBytes / sizeof(Word)];
};

// The largest packets that addresses and sizes allow, given all of them in one bitwise or.
inline int packet_bytes(uint64_t addresses) {
  return addresses % 16 == 0 ? 16 : addresses % 4 == 0 ? 4 : 1;
}

}  // namespace dspark
