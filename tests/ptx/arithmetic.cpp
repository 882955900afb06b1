// Arithmetic and logic.

#include <fenv.h>

#include <bit>
#include <cmath>

#include "operations.h"

namespace ptx {
namespace {

// Rounded as a mode of fenv.h says.
template <int kMode, typename F>
float rounded(const F& f) {
  fesetround(kMode);
  volatile float result = f();
  fesetround(FE_TONEAREST);
  return result;
}

template <typename Op>
struct OfHalves {
  template <typename T>
  T operator()(T a, T b) const {
    return from_double<T>(Op{}(to_double(a), to_double(b)));
  }
};

template <typename Op>
Handler number(const Instruction& i, Op) {  // binary, of one type
  return with_type(i, i.part(-1), [&]<typename T>(Type<T>) -> Handler {
    if constexpr (std::is_integral_v<T> || std::is_floating_point_v<T>) {
      return with_ftz(i, [](auto ftz) -> Handler { return &binary<T, T, T, ftz, Op>; });
    } else {
      return &binary<T, T, T, false, OfHalves<Op>>;
    }
  });
}

template <typename Op>
Handler integer(const Instruction& i, Op) {  // binary, of one type
  return with_integer(i,
                      []<typename T>(Type<T>) -> Handler { return &binary<T, T, T, false, Op>; });
}

template <typename Op>
Handler real(const Instruction& i, Op) {  // unary, of float
  if (i.part(-1) != "f32") unknown(i);
  return with_ftz(i, [](auto ftz) -> Handler { return &unary<float, float, ftz, Op>; });
}

struct Subtract {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<Unsigned<T>>(a) - static_cast<Unsigned<T>>(b);
  }
};
struct Divide {
  template <typename T>
  T operator()(T a, T b) const {
    if constexpr (std::is_integral_v<T>) {
      if (b == 0) return static_cast<T>(-1);
      if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(-Unsigned<T>(a));
    }
    return a / b;
  }
};
struct Remainder {
  template <typename T>
  T operator()(T a, T b) const {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return a % b;
  }
};
template <typename T>
using Wide = std::conditional_t<
    sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
    std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>,
                       std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>>>;

Handler multiply(const Instruction& i) {  // mul and mad, .lo .hi .wide or of floats
  const bool adds = i.name() == "mad";
  if (i.part(-1)[0] == 'f') return number(i, [](auto a, auto b) { return a * b; });
  return with_integer(i, [&]<typename T>(Type<T>) -> Handler {
    if constexpr (sizeof(T) == 1) {
      unknown(i);
    } else {
      using W = Wide<T>;
      if (i.has("wide")) {
        if constexpr (sizeof(T) < 8) {
          const auto product = [](T a, T b) { return W(a) * W(b); };
          const auto sum = [](T a, T b, W c) { return Add{}(W(W(a) * W(b)), c); };
          return adds ? &ternary<W, T, T, W, false, decltype(sum)>
                      : &binary<W, T, T, false, decltype(product)>;
        }
        unknown(i);
      }
      if (i.has("hi")) {
        if (adds) unknown(i);
        const auto high = [](T a, T b) { return static_cast<T>((W(a) * W(b)) >> (sizeof(T) * 8)); };
        return &binary<T, T, T, false, decltype(high)>;
      }
      const auto low = [](T a, T b) -> T { return Unsigned<W>(a) * Unsigned<W>(b); };
      const auto sum = [](T a, T b, T c) -> T { return Unsigned<W>(a) * Unsigned<W>(b) + c; };
      return adds ? &ternary<T, T, T, T, false, decltype(sum)>
                  : &binary<T, T, T, false, decltype(low)>;
    }
  });
}

Handler fused_multiply_add(const Instruction& i) {
  const auto nearest = [](float a, float b, float c) { return fmaf(a, b, c); };
  const auto down = [](float a, float b, float c) {
    return rounded<FE_DOWNWARD>([=] { return fmaf(a, b, c); });
  };
  const auto in_double = [](double a, double b, double c) { return fma(a, b, c); };
  using D = double;
  if (i.part(-1) == "f64") return &ternary<D, D, D, D, false, decltype(in_double)>;
  if (i.part(-1) != "f32") unknown(i);
  return with_ftz(i, [&](auto ftz) -> Handler {
    if (i.has("rm")) return &ternary<float, float, float, float, ftz, decltype(down)>;
    if (!i.has("rn")) unknown(i);
    return &ternary<float, float, float, float, ftz, decltype(nearest)>;
  });
}

Handler shift(const Instruction& i, bool left) {
  return with_integer(i, [&]<typename T>(Type<T>) -> Handler {
    constexpr uint32_t kBits = sizeof(T) * 8;
    const auto up = [](T a, uint32_t n) -> T { return n >= kBits ? 0 : Unsigned<T>(a) << n; };
    const auto down = [](T a, uint32_t n) -> T {
      if (n >= kBits) return std::is_signed_v<T> && a < 0 ? -1 : 0;
      return a >> n;
    };
    return left ? &binary<T, T, uint32_t, false, decltype(up)>
                : &binary<T, T, uint32_t, false, decltype(down)>;
  });
}

Handler funnel_shift(const Instruction& i) {  // shf: of a 64-bit number, its lower half first
  if (!i.has("wrap")) unknown(i);
  const auto left = [](uint32_t low, uint32_t high, uint32_t by) -> uint32_t {
    return ((uint64_t{high} << 32 | low) << (by & 31)) >> 32;
  };
  const auto right = [](uint32_t low, uint32_t high, uint32_t by) -> uint32_t {
    return (uint64_t{high} << 32 | low) >> (by & 31);
  };
  using U = uint32_t;
  return i.has("l") ? &ternary<U, U, U, U, false, decltype(left)>
                    : &ternary<U, U, U, U, false, decltype(right)>;
}

Handler bit_field(const Instruction& i) {  // bfe
  return with_integer(i, [&]<typename T>(Type<T>) -> Handler {
    const auto extract = [](T a, uint32_t at, uint32_t length) -> T {
      at &= 0xFF, length &= 0xFF;
      constexpr uint32_t kBits = sizeof(T) * 8;
      if (length == 0) return 0;
      const uint32_t top = std::min(at + length, kBits);
      if (at >= kBits) return std::is_signed_v<T> && a < 0 ? -1 : 0;
      const T up = static_cast<T>(Unsigned<T>(a) << (kBits - top));
      return up >> (kBits - top + at);
    };
    return &ternary<T, T, uint32_t, uint32_t, false, decltype(extract)>;
  });
}

template <typename T>
void insert_bits(Warp& w, const Instruction& i, uint32_t lanes) {  // bfi d, a, b, at, length
  constexpr uint32_t kBits = sizeof(T) * 8;
  each(lanes, [&](int l) {
    const uint32_t at = w.reg(i.r[3])[l] & 0xFF, length = w.reg(i.r[4])[l] & 0xFF;
    const T a = get<T>(w.reg(i.r[1])[l]), b = get<T>(w.reg(i.r[2])[l]);
    const T low = length >= kBits ? ~T{0} : (T{1} << length) - 1;
    const T mask = at >= kBits ? 0 : low << at;
    w.reg(i.r[0])[l] = (b & ~mask) | (at >= kBits ? 0 : a << at & mask);
  });
}

Handler permute(const Instruction& i) {  // prmt: four of the eight bytes of a and b, or their signs
  const auto chosen = [](uint32_t a, uint32_t b, uint32_t places) {
    const uint64_t bytes = uint64_t{b} << 32 | a;
    uint32_t d = 0;
    for (int k = 0; k < 4; ++k) {
      const uint32_t place = places >> 4 * k & 0xF;
      const auto byte = static_cast<int8_t>(bytes >> 8 * (place & 7));
      d |= uint32_t{static_cast<uint8_t>(place & 8 ? byte >> 7 : byte)} << 8 * k;
    }
    return d;
  };
  using U = uint32_t;
  if (i.part(-1) != "b32") unknown(i);  // the modes, f4e and others
  return &ternary<U, U, U, U, false, decltype(chosen)>;
}

Handler logic(const Instruction& i) {  // and, or, xor, not
  const std::string &name = i.name(), &type = i.part(-1);
  const auto both = [](uint64_t a, uint64_t b) { return a & b; };
  const auto any = [](uint64_t a, uint64_t b) { return a | b; };
  const auto one = [](uint64_t a, uint64_t b) { return a ^ b; };
  using U = uint64_t;
  if (name == "and") return &binary<U, U, U, false, decltype(both)>;
  if (name == "or") return &binary<U, U, U, false, decltype(any)>;
  if (name == "xor") return &binary<U, U, U, false, decltype(one)>;
  const auto no = [](bool a) { return !a; };
  if (type == "pred") return &unary<bool, bool, false, decltype(no)>;
  return with_integer(i, []<typename T>(Type<T>) -> Handler {
    const auto flipped = [](T a) -> T { return ~a; };
    return &unary<T, T, false, decltype(flipped)>;
  });
}

Handler sign(const Instruction& i) {  // neg, abs
  return with_type(i, i.part(-1), [&]<typename T>(Type<T>) -> Handler {
    if constexpr (std::is_integral_v<T>) {
      const auto opposite = [](T a) -> T { return -static_cast<Unsigned<T>>(a); };
      if (i.name() == "neg") return &unary<T, T, false, decltype(opposite)>;
    } else if constexpr (std::is_floating_point_v<T>) {
      const auto opposite = [](T a) { return -a; };
      const auto size = [](T a) { return std::abs(a); };
      return i.name() == "neg" ? &unary<T, T, false, decltype(opposite)>
                               : &unary<T, T, false, decltype(size)>;
    }
    unknown(i);
  });
}

}  // namespace

Handler arithmetic(const Instruction& i) {
  const std::string& name = i.name();
  const auto any = [&](auto... names) { return ((name == names) || ...); };
  if (name == "add" && i.has("rz")) {
    const auto toward_zero = [](float a, float b) {
      return rounded<FE_TOWARDZERO>([=] {
        volatile float x = a;
        return x + b;
      });
    };
    return &binary<float, float, float, false, decltype(toward_zero)>;
  }
  if (name == "add") return number(i, Add{});
  if (name == "sub") return number(i, Subtract{});
  if (any("mul", "mad")) return multiply(i);
  if (name == "fma") return fused_multiply_add(i);
  if (name == "div") return number(i, Divide{});
  if (name == "rem") return integer(i, Remainder{});
  if (name == "min") return number(i, Least{});
  if (name == "max") return number(i, Greatest{});
  if (name == "shl") return shift(i, true);
  if (name == "shr") return shift(i, false);
  if (name == "shf") return funnel_shift(i);
  if (name == "bfe") return bit_field(i);
  if (name == "prmt") return permute(i);
  if (name == "bfi") {
    return i.part(-1) == "b64" ? &insert_bits<uint64_t> : &insert_bits<uint32_t>;
  }
  if (any("and", "or", "xor", "not")) return logic(i);
  if (name == "popc") {
    return with_integer(i, []<typename T>(Type<T>) -> Handler {
      const auto ones = [](T a) { return std::popcount(static_cast<Unsigned<T>>(a)); };
      return &unary<int, T, false, decltype(ones)>;
    });
  }
  if (name == "ex2") return real(i, [](float a) { return exp2f(a); });
  if (name == "rcp") return real(i, [](float a) { return 1 / a; });
  if (name == "sqrt") return real(i, [](float a) { return sqrtf(a); });
  if (any("neg", "abs")) return sign(i);
  return nullptr;
}

}  // namespace ptx
