// What families of instructions have in common. A family finds the handler of an instruction, null
// if it is none of its own.

#pragma once

#include <math.h>
#include <string.h>

#include <limits>
#include <type_traits>

#include "machine.h"
#include "numbers.h"

namespace ptx {

Handler arithmetic(const Instruction& i);
Handler comparison(const Instruction& i);
Handler conversion(const Instruction& i);
Handler memory_access(const Instruction& i);
Handler exchange_of_lanes(const Instruction& i);
Handler matrix_product(const Instruction& i);

inline void nothing(Warp&, const Instruction&, uint32_t) {}

[[noreturn]] inline void unknown(const Instruction& i) {
  std::string text = "PTX, line " + std::to_string(i.line) + ": unknown instruction";
  for (const std::string& part : *i.parts) text += (&part == &i.name() ? " " : ".") + part;
  throw std::runtime_error(text);
}

template <typename T>
T get(uint64_t bits) {
  T value;
  memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
uint64_t bits_of(T value) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T flush(T value, bool) {
  return value;
}
inline float flush(float value, bool ftz) {
  return ftz && fabsf(value) < std::numeric_limits<float>::min() ? copysignf(0.0f, value) : value;
}

inline bool flushes(const Instruction& i) { return i.has("ftz"); }

// d = op(a), op(a, b) or op(a, b, c)
template <typename D, typename A, bool kFtz, typename Op>
void unary(Warp& w, const Instruction& i, uint32_t lanes) {
  uint64_t *d = w.reg(i.r[0]), *a = w.reg(i.r[1]);
  each(lanes, [&](int l) { d[l] = bits_of<D>(flush(D(Op{}(flush(get<A>(a[l]), kFtz))), kFtz)); });
}
template <typename D, typename A, typename B, bool kFtz, typename Op>
void binary(Warp& w, const Instruction& i, uint32_t lanes) {
  uint64_t *d = w.reg(i.r[0]), *a = w.reg(i.r[1]), *b = w.reg(i.r[2]);
  each(lanes, [&](int l) {
    d[l] = bits_of<D>(flush(D(Op{}(flush(get<A>(a[l]), kFtz), flush(get<B>(b[l]), kFtz))), kFtz));
  });
}
template <typename D, typename A, typename B, typename C, bool kFtz, typename Op>
void ternary(Warp& w, const Instruction& i, uint32_t lanes) {
  uint64_t *d = w.reg(i.r[0]), *a = w.reg(i.r[1]), *b = w.reg(i.r[2]), *c = w.reg(i.r[3]);
  each(lanes, [&](int l) {
    d[l] = bits_of<D>(flush(
        D(Op{}(flush(get<A>(a[l]), kFtz), flush(get<B>(b[l]), kFtz), flush(get<C>(c[l]), kFtz))),
        kFtz));
  });
}

template <typename T>
struct Type {};

// Calls f with the type that the last part of the name, or another one, stands for.
template <typename F>
Handler with_type(const Instruction& i, const std::string& name, const F& f) {
  if (name == "u8" || name == "b8") return f(Type<uint8_t>{});
  if (name == "s8") return f(Type<int8_t>{});
  if (name == "u16" || name == "b16") return f(Type<uint16_t>{});
  if (name == "s16") return f(Type<int16_t>{});
  if (name == "u32" || name == "b32") return f(Type<uint32_t>{});
  if (name == "s32") return f(Type<int32_t>{});
  if (name == "u64" || name == "b64") return f(Type<uint64_t>{});
  if (name == "s64") return f(Type<int64_t>{});
  if (name == "f32") return f(Type<float>{});
  if (name == "f64") return f(Type<double>{});
  if (name == "f16") return f(Type<Half>{});
  if (name == "bf16") return f(Type<Bfloat>{});
  unknown(i);
}

template <typename F>
Handler with_integer(const Instruction& i, const F& f) {
  return with_type(i, i.part(-1), [&]<typename T>(Type<T> type) -> Handler {
    if constexpr (std::is_integral_v<T>)
      return f(type);
    else
      unknown(i);
  });
}

template <typename F>
Handler with_ftz(const Instruction& i, const F& f) {
  return flushes(i) ? f(std::true_type{}) : f(std::false_type{});
}

template <typename T>
using Unsigned = typename std::conditional_t<std::is_integral_v<T>, std::make_unsigned<T>,
                                             std::type_identity<T>>::type;

struct Add {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<Unsigned<T>>(a) + static_cast<Unsigned<T>>(b);
  }
};
struct Least {
  template <typename T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>)
      return fmin(a, b);
    else
      return b < a ? b : a;
  }
};
struct Greatest {
  template <typename T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>)
      return fmax(a, b);
    else
      return b > a ? b : a;
  }
};

}  // namespace ptx
