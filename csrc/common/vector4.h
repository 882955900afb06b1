// Four floats as the Vector of a group whose members are lanes themselves: a CUDA thread, or a
// fiber that stands for one in tests. See common/group.h for what each function does.

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "common/group.h"
#include "common/types.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace dspark {

struct Float4 {
  float lane[4];
};
struct Mask4 {
  bool lane[4];
};

template <typename Out, typename F>
DSPARK_FORCE_INLINE Out for_lanes4(const F& f) {
  return {f(0), f(1), f(2), f(3)};
}

#define DSPARK_FLOAT4_OPERATOR(Out, op)                                    \
  DSPARK_FORCE_INLINE Out operator op(const Float4& a, const Float4& b) {  \
    return for_lanes4<Out>([&](int i) { return a.lane[i] op b.lane[i]; }); \
  }
DSPARK_FLOAT4_OPERATOR(Float4, +)
DSPARK_FLOAT4_OPERATOR(Float4, -)
DSPARK_FLOAT4_OPERATOR(Float4, *)
DSPARK_FLOAT4_OPERATOR(Float4, /)
DSPARK_FLOAT4_OPERATOR(Mask4, <)
DSPARK_FLOAT4_OPERATOR(Mask4, >)
#undef DSPARK_FLOAT4_OPERATOR

DSPARK_FORCE_INLINE Float4 operator-(const Float4& a) {
  return for_lanes4<Float4>([&](int i) { return -a.lane[i]; });
}
DSPARK_FORCE_INLINE Float4& operator+=(Float4& a, const Float4& b) { return a = a + b; }
DSPARK_FORCE_INLINE Float4& operator-=(Float4& a, const Float4& b) { return a = a - b; }

DSPARK_FORCE_INLINE float to_float(float value) { return value; }
DSPARK_FORCE_INLINE float to_float(Bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}
DSPARK_FORCE_INLINE float to_float(Fp16 value) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(value.bits));
#else
  _Float16 result;
  memcpy(&result, &value.bits, 2);
  return static_cast<float>(result);
#endif
}

template <typename T>
struct alignas(4 * sizeof(T)) Packet {
  T value[4];
};

template <typename T>
DSPARK_FORCE_INLINE Packet<T> load_packet(const T* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(Packet<T>) == 0) {
    return *reinterpret_cast<const Packet<T>*>(from);
  }
  return {{from[0], from[1], from[2], from[3]}};
}

struct Vector4Lanes {
  using Vector = Float4;
  using Mask = Mask4;
  static constexpr int kWidth = 4;
  template <typename T>
  static constexpr bool kMatrixUnit = sizeof(T) == 2;
  static constexpr int kExpand = kMaxNodes;  // a level at once: its nodes are what runs in parallel
  static constexpr int kStep = 4, kTile = 4, kSmallTile = 2, kLeastTeam = 8;
  static constexpr int kScan = 8;  // tokens compared at once: loads in flight

  template <typename T>
  static DSPARK_FORCE_INLINE float to_float(T value) {
    return dspark::to_float(value);
  }
  // Accesses are of 8 or 16 bytes where the address allows it.
  template <typename T>
  static DSPARK_FORCE_INLINE Vector load(const T* from) {
    return unpack(load_packet(from));
  }
  template <typename T>
  static DSPARK_FORCE_INLINE Vector unpack(const Packet<T>& packet) {
    return for_lanes4<Float4>([&](int i) { return dspark::to_float(packet.value[i]); });
  }
  static DSPARK_FORCE_INLINE Vector load_own(const float* from) {
    const auto packet = *reinterpret_cast<const Packet<float>*>(from);
    return {packet.value[0], packet.value[1], packet.value[2], packet.value[3]};
  }
  // All packets are asked for before the first is used; null rows read another one.
  template <typename T>
  static DSPARK_FORCE_INLINE void load_rows(const T* const (&rows)[kWidth], int k, int left,
                                            Vector (&block)[kWidth]) {
    const T* other = nullptr;
    uintptr_t addresses = 0;
    DSPARK_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      if (rows[i] != nullptr) other = rows[i];
      addresses |= reinterpret_cast<uintptr_t>(rows[i]);
    }
    if (left >= kWidth && other != nullptr && addresses % sizeof(Packet<T>) == 0) {
      Packet<T> packets[kWidth];
      DSPARK_UNROLL
      for (int i = 0; i < kWidth; ++i) {
        const T* row = rows[i] != nullptr ? rows[i] : other;
        packets[i] = *reinterpret_cast<const Packet<T>*>(row + k);
      }
      DSPARK_UNROLL
      for (int i = 0; i < kWidth; ++i) {
        block[i] = rows[i] != nullptr ? unpack(packets[i]) : splat(0.0f);
      }
      return;
    }
    DSPARK_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      block[i] = rows[i] != nullptr ? load_some<Vector4Lanes>(rows[i] + k, left) : splat(0.0f);
    }
  }
  static constexpr int kPacket = 8;  // numbers of 2 bytes in 16
  template <typename T>
  static DSPARK_FORCE_INLINE void copy_packet(T* to, const T* from) {
    struct alignas(16) Numbers {
      T value[kPacket];
    };
    *reinterpret_cast<Numbers*>(to) =
        from == nullptr ? Numbers{} : *reinterpret_cast<const Numbers*>(from);
  }
  template <typename T>
  static DSPARK_FORCE_INLINE void copy_number(T* to, const T* from) {
    *to = *from;
  }
  static DSPARK_FORCE_INLINE void wait_for_packets() {}
  template <typename T>
  static DSPARK_FORCE_INLINE Vector load_first(const T* from, int count) {
    return for_lanes4<Float4>([&](int i) { return i < count ? dspark::to_float(from[i]) : 0.0f; });
  }
  static DSPARK_FORCE_INLINE void prefetch(const void* from) {
#ifdef __CUDA_ARCH__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
#else
    __builtin_prefetch(from);
#endif
  }
  static DSPARK_FORCE_INLINE void store(float* to, Vector value) {
    *reinterpret_cast<Packet<float>*>(to) = {
        {value.lane[0], value.lane[1], value.lane[2], value.lane[3]}};
  }
  static DSPARK_FORCE_INLINE Vector splat(float value) { return {value, value, value, value}; }
  using Step = Float4;
  static DSPARK_FORCE_INLINE Step load_step(const float* from) { return load_own(from); }
  static DSPARK_FORCE_INLINE Vector broadcast(const Step& step, int i) {
    return splat(step.lane[i]);
  }
  static DSPARK_FORCE_INLINE Vector exp(Vector x) {
    return for_lanes4<Float4>([&](int i) { return expf(x.lane[i]); });
  }
  static constexpr float kLog2OfE = 1.44269504f;
  // 1 / (1 + exp(-x)), within 1e-6
  static DSPARK_FORCE_INLINE Vector sigmoid(Vector x) {
#ifdef __CUDA_ARCH__
    return for_lanes4<Float4>([&](int i) {
      float power, result;
      asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-kLog2OfE * x.lane[i]));
      asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1 + power));
      return result;
    });
#else
    return for_lanes4<Float4>([&](int i) { return 1 / (1 + expf(-x.lane[i])); });
#endif
  }
  static DSPARK_FORCE_INLINE Vector log(Vector x) {
    return for_lanes4<Float4>([&](int i) { return logf(x.lane[i]); });
  }
  static DSPARK_FORCE_INLINE Vector select(Mask mask, Vector yes, Vector no) {
    return for_lanes4<Float4>([&](int i) { return mask.lane[i] ? yes.lane[i] : no.lane[i]; });
  }
  static DSPARK_FORCE_INLINE uint32_t bits(Mask mask) {
    return mask.lane[0] | mask.lane[1] << 1 | mask.lane[2] << 2 | mask.lane[3] << 3;
  }
  static DSPARK_FORCE_INLINE uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
  }
  static DSPARK_FORCE_INLINE float bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
  }
  static DSPARK_FORCE_INLINE Mask first_lanes(int count) {
    return for_lanes4<Mask4>([&](int i) { return i < count; });
  }
  static DSPARK_FORCE_INLINE void transpose(Vector (&block)[kWidth]) {
    DSPARK_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      DSPARK_UNROLL
      for (int j = 0; j < i; ++j) {
        const float upper = block[j].lane[i];
        block[j].lane[i] = block[i].lane[j];
        block[i].lane[j] = upper;
      }
    }
  }
  static DSPARK_FORCE_INLINE float fold_sum(Vector v) {
    return (v.lane[0] + v.lane[1]) + (v.lane[2] + v.lane[3]);
  }
  static DSPARK_FORCE_INLINE float fold_max(Vector v) {
    return fmaxf(fmaxf(v.lane[0], v.lane[1]), fmaxf(v.lane[2], v.lane[3]));
  }
  // All loads come before the first comparison.
  static DSPARK_FORCE_INLINE bool contains(const int64_t* values, int count, int stride,
                                           int64_t wanted) {
    int64_t read[kScan];
    DSPARK_UNROLL
    for (int i = 0; i < kScan; ++i) read[i] = values[(i < count ? i : 0) * stride];
    bool found = false;
    DSPARK_UNROLL
    for (int i = 0; i < kScan; ++i) found |= read[i] == wanted;
    return found;
  }
  static DSPARK_FORCE_INLINE Vector gumbel(int64_t seed, int64_t position, int64_t token,
                                           Stream stream) {
    const Philox words = noise_words(seed, position, token / 4, stream);
    return for_lanes4<Float4>([&](int i) { return gumbel_from_word(words.word[i]); });
  }
};

}  // namespace dspark
