// Conversions between formats.

#include "operations.h"

namespace ptx {
namespace {

template <typename D, typename A>
D converted(A a, const Instruction& i) {
  if constexpr (std::is_integral_v<A> && std::is_integral_v<D>) {
    if (i.has("sat")) {
      using Limits = std::numeric_limits<D>;
      const __int128 value = a;
      return value < Limits::min() ? Limits::min() : value > Limits::max() ? Limits::max() : D(a);
    }
    return static_cast<D>(a);
  } else if constexpr (std::is_integral_v<D>) {  // from a float: rounded, and held in range
    double value = to_double(a);
    value = i.has("rzi")   ? trunc(value)
            : i.has("rmi") ? floor(value)
            : i.has("rpi") ? ceil(value)
                           : nearbyint(value);
    using Limits = std::numeric_limits<D>;
    if (value != value) return 0;
    if (value <= static_cast<double>(Limits::min())) return Limits::min();
    if (value >= static_cast<double>(Limits::max())) return Limits::max();
    return static_cast<D>(value);
  } else {
    double value;
    if constexpr (std::is_integral_v<A>) {
      if constexpr (std::is_same_v<D, float>) return static_cast<float>(a);
      value = static_cast<double>(a);
    } else {
      value = to_double(a);
    }
    if (i.has("rzi")) value = trunc(value);
    if (i.has("rmi")) value = floor(value);
    if (i.has("rpi")) value = ceil(value);
    if (i.has("rni")) value = nearbyint(value);
    if (i.has("sat")) value = value > 0 ? fmin(value, 1.0) : 0.0;
    return from_double<D>(value);
  }
}

template <typename D, typename A>
void convert(Warp& w, const Instruction& i, uint32_t lanes) {
  uint64_t *d = w.reg(i.r[0]), *a = w.reg(i.r[1]);
  const bool ftz = flushes(i);
  each(lanes, [&](int l) {
    const D value = flush(converted<D>(flush(get<A>(a[l]), ftz), i), ftz);
    // a wider register gets the value's own bits, extended by its sign
    if constexpr (std::is_integral_v<D>)
      d[l] = static_cast<uint64_t>(static_cast<int64_t>(value));
    else
      d[l] = bits_of(value);
  });
}

// Two numbers in the halves of a word: d = (a, b), a above.
template <typename T>
void convert_pair(Warp& w, const Instruction& i, uint32_t lanes) {
  each(lanes, [&](int l) {
    const auto half = [&](int k) { return bits_of(converted<T>(get<float>(w.reg(i.r[k])[l]), i)); };
    w.reg(i.r[0])[l] = half(1) << 16 | half(2);
  });
}

// Two numbers of eight bits to two halves.
void convert_eights(Warp& w, const Instruction& i, uint32_t lanes) {
  each(lanes, [&](int l) {
    const uint64_t a = w.reg(i.r[1])[l];
    const auto half = [&](int k) {
      return bits_of(from_double<Half>(to_double(get<Eight>(a >> (8 * k)))));
    };
    w.reg(i.r[0])[l] = half(1) << 16 | half(0);
  });
}

}  // namespace

Handler conversion(const Instruction& i) {
  if (i.name() != "cvt") return nullptr;
  const std::string &to = i.part(-2), &from = i.part(-1);
  if (to == "bf16x2" && from == "f32") return &convert_pair<Bfloat>;
  if (to == "f16x2" && from == "f32") return &convert_pair<Half>;
  if (to == "f16x2" && from == "e4m3x2") return &convert_eights;
  return with_type(i, to, [&]<typename D>(Type<D>) -> Handler {
    return with_type(i, from, []<typename A>(Type<A>) -> Handler { return &convert<D, A>; });
  });
}

}  // namespace ptx
