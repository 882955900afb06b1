// Predicates, and what they select.

#include "operations.h"

namespace ptx {
namespace {

template <typename Op>
struct Unordered {
  template <typename T>
  bool operator()(T a, T b) const {
    return a != a || b != b || Op{}(a, b);
  }
};

template <typename T, bool kFtz, typename Op>
Handler compare(const Instruction& i) {
  const auto with_and = [](T a, T b, bool c) { return Op{}(a, b) && c; };
  const auto with_or = [](T a, T b, bool c) { return Op{}(a, b) || c; };
  if (i.has("and")) return &ternary<bool, T, T, bool, kFtz, decltype(with_and)>;
  if (i.has("or")) return &ternary<bool, T, T, bool, kFtz, decltype(with_or)>;
  if (i.r.size() != 3) unknown(i);
  return &binary<bool, T, T, kFtz, Op>;
}

Handler set_predicate(const Instruction& i) {
  const std::string& how = i.part(1);
  const auto equal = [](auto a, auto b) { return a == b; };
  const auto differ = [](auto a, auto b) { return a < b || a > b; };
  const auto less = [](auto a, auto b) { return a < b; };
  const auto at_most = [](auto a, auto b) { return a <= b; };
  const auto greater = [](auto a, auto b) { return a > b; };
  const auto at_least = [](auto a, auto b) { return a >= b; };
  const auto numbers = [](auto a, auto b) { return a == a && b == b; };
  const auto not_numbers = [](auto a, auto b) { return a != a || b != b; };
  return with_type(i, i.part(-1), [&]<typename T>(Type<T>) -> Handler {
    return with_ftz(i, [&](auto ftz) -> Handler {
      if (how == "eq") return compare<T, ftz, decltype(equal)>(i);
      if (how == "ne") return compare<T, ftz, decltype(differ)>(i);
      if (how == "lt" || how == "lo") return compare<T, ftz, decltype(less)>(i);
      if (how == "le" || how == "ls") return compare<T, ftz, decltype(at_most)>(i);
      if (how == "gt" || how == "hi") return compare<T, ftz, decltype(greater)>(i);
      if (how == "ge" || how == "hs") return compare<T, ftz, decltype(at_least)>(i);
      if constexpr (!std::is_integral_v<T>) {
        if (how == "equ") return compare<T, ftz, Unordered<decltype(equal)>>(i);
        if (how == "neu") return compare<T, ftz, Unordered<decltype(differ)>>(i);
        if (how == "ltu") return compare<T, ftz, Unordered<decltype(less)>>(i);
        if (how == "leu") return compare<T, ftz, Unordered<decltype(at_most)>>(i);
        if (how == "gtu") return compare<T, ftz, Unordered<decltype(greater)>>(i);
        if (how == "geu") return compare<T, ftz, Unordered<decltype(at_least)>>(i);
        if (how == "num") return compare<T, ftz, decltype(numbers)>(i);
        if (how == "nan") return compare<T, ftz, decltype(not_numbers)>(i);
      }
      unknown(i);
    });
  });
}

Handler select(const Instruction& i) {
  return with_type(i, i.part(-1), []<typename T>(Type<T>) -> Handler {
    const auto one = [](T a, T b, bool which) { return which ? a : b; };
    return &ternary<T, T, T, bool, false, decltype(one)>;
  });
}

}  // namespace

Handler comparison(const Instruction& i) {
  if (i.name() == "setp") return set_predicate(i);
  if (i.name() == "selp") return select(i);
  return nullptr;
}

}  // namespace ptx
