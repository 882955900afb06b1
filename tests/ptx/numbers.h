// The floating-point formats that C++ lacks.

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <compare>

namespace ptx {

// A sign, kExponent bits and kMantissa bits. kFinite: no infinities; all ones are NaN (e4m3).
template <typename Bits, int kExponent, int kMantissa, bool kFinite>
struct Format {
  Bits bits;
};
using Half = Format<uint16_t, 5, 10, false>;
using Bfloat = Format<uint16_t, 8, 7, false>;
using Eight = Format<uint8_t, 4, 3, true>;

inline double to_double(double value) { return value; }
template <typename Bits, int kExponent, int kMantissa, bool kFinite>
double to_double(Format<Bits, kExponent, kMantissa, kFinite> value);

// == and < of formats are those of the numbers they stand for.
template <typename Bits, int kExponent, int kMantissa, bool kFinite>
auto operator<=>(Format<Bits, kExponent, kMantissa, kFinite> a,
                 Format<Bits, kExponent, kMantissa, kFinite> b) {
  return to_double(a) <=> to_double(b);
}
template <typename Bits, int kExponent, int kMantissa, bool kFinite>
bool operator==(Format<Bits, kExponent, kMantissa, kFinite> a,
                Format<Bits, kExponent, kMantissa, kFinite> b) {
  return to_double(a) == to_double(b);
}

template <typename Bits, int kExponent, int kMantissa, bool kFinite>
double to_double(Format<Bits, kExponent, kMantissa, kFinite> value) {
  constexpr int kBias = (1 << (kExponent - 1)) - 1, kTop = (1 << kExponent) - 1;
  constexpr int kFractions = 1 << kMantissa;
  const int exponent = value.bits >> kMantissa & kTop, fraction = value.bits & (kFractions - 1);
  const double sign = value.bits >> (kExponent + kMantissa) ? -1.0 : 1.0;
  if (kFinite ? exponent == kTop && fraction == kFractions - 1 : exponent == kTop) {
    return !kFinite && fraction == 0 ? sign * INFINITY : NAN;
  }
  if (exponent == 0) return sign * ldexp(fraction, 1 - kBias - kMantissa);
  return sign * ldexp(kFractions + fraction, exponent - kBias - kMantissa);
}

template <typename T>
struct Rounding;

template <typename Bits, int kExponent, int kMantissa, bool kFinite>
struct Rounding<Format<Bits, kExponent, kMantissa, kFinite>> {
  using T = Format<Bits, kExponent, kMantissa, kFinite>;
  static T nearest(double value) {  // ties to even
    constexpr int kBias = (1 << (kExponent - 1)) - 1, kTop = (1 << kExponent) - 1;
    constexpr int kFractions = 1 << kMantissa;
    const Bits sign = signbit(value) ? Bits(1) << (kExponent + kMantissa) : Bits(0);
    if (value != value) return {Bits(sign | kTop << kMantissa | (kFractions - 1))};
    const double size = fabs(value);
    if (size == 0) return {sign};
    int exponent = isinf(size) ? 0 : ilogb(size);
    if (exponent < 1 - kBias) exponent = 1 - kBias;
    // in units of the last place; one that rounds up to the next power of two carries by itself
    const double units = isinf(size) ? 0 : nearbyint(ldexp(size, kMantissa - exponent));
    const int64_t bits = static_cast<int64_t>(units) + (int64_t{exponent + kBias - 1} << kMantissa);
    const int64_t infinite = int64_t{kTop} << kMantissa;
    const int64_t largest = kFinite ? infinite + kFractions - 2 : infinite;  // e4m3 saturates
    if (isinf(size) || bits > largest) return {Bits(sign | largest)};
    return {Bits(sign | bits)};
  }
};
template <>
struct Rounding<float> {
  static float nearest(double value) { return static_cast<float>(value); }
};
template <>
struct Rounding<double> {
  static double nearest(double value) { return value; }
};

template <typename T>
T from_double(double value) {
  return Rounding<T>::nearest(value);
}

}  // namespace ptx
