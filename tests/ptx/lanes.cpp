// What the lanes of a warp tell each other.

#include <algorithm>
#include <utility>

#include "operations.h"

namespace ptx {
namespace {

void shuffle(Warp& w, const Instruction& i, uint32_t lanes) {
  const bool tells = i.operands[0].count == 2;  // d|p
  const int first = tells ? 2 : 1;
  Lanes values;
  std::copy_n(w.reg(i.r[first]), kLanes, values.begin());
  const char mode = i.has("up") ? 'u' : i.has("down") ? 'd' : i.has("bfly") ? 'b' : 'i';
  each(lanes, [&](int l) {
    const auto b = static_cast<int>(w.reg(i.r[first + 1])[l] & 31);
    const uint64_t c = w.reg(i.r[first + 2])[l];
    const auto segment = static_cast<int>(c >> 8 & 31), clamp = static_cast<int>(c & 31);
    const int low = l & segment, high = low | (clamp & ~segment);
    int from = mode == 'u'   ? l - b
               : mode == 'd' ? l + b
               : mode == 'b' ? l ^ b
                             : low | (b & ~segment);
    const bool inside = mode == 'u' ? from >= high : from <= high;
    if (!inside) from = l;
    if (!(lanes >> from & 1)) throw std::runtime_error("a shuffle reads a lane that is not there");
    w.reg(i.r[0])[l] = static_cast<uint32_t>(values[from]);
    if (tells) w.reg(i.r[1])[l] = inside;
  });
}

template <typename T, typename Op>
void reduce(Warp& w, const Instruction& i, uint32_t lanes) {
  bool first = true;
  T all{};
  each(lanes, [&](int l) {
    const T value = get<T>(w.reg(i.r[1])[l]);
    all = std::exchange(first, false) ? value : Op{}(all, value);
  });
  each(lanes, [&](int l) { w.reg(i.r[0])[l] = bits_of(all); });
}

Handler reduction(const Instruction& i) {
  return with_integer(i, [&]<typename T>(Type<T>) -> Handler {
    if (i.has("add")) return &reduce<T, Add>;
    if (i.has("min")) return &reduce<T, Least>;
    if (i.has("max")) return &reduce<T, Greatest>;
    unknown(i);
  });
}

}  // namespace

Handler exchange_of_lanes(const Instruction& i) {
  if (i.name() == "shfl") return &shuffle;
  if (i.name() == "redux") return reduction(i);
  if (i.name() == "bar" && i.part(1) == "warp") return &nothing;
  return nullptr;
}

}  // namespace ptx
