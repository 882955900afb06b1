// Moves between registers, and to and from memory.

#include <algorithm>
#include <utility>

#include "operations.h"

namespace ptx {
namespace {

template <typename T>
void move(Warp& w, const Instruction& i, uint32_t lanes) {
  const size_t to = i.operands[0].count, from = i.operands[1].count;
  const auto width = static_cast<int>(sizeof(T) * 8 / std::max(to, from));
  if (to == from) {
    uint64_t *d = w.reg(i.r[0]), *a = w.reg(i.r[1]);
    each(lanes, [&](int l) { d[l] = bits_of(get<T>(a[l])); });
  } else if (to > from) {
    each(lanes, [&](int l) {
      const uint64_t a = w.reg(i.r[to])[l];
      for (size_t k = 0; k < to; ++k) {
        w.reg(i.r[k])[l] = a >> (k * width) & (~uint64_t{0} >> (64 - width));
      }
    });
  } else {
    each(lanes, [&](int l) {
      uint64_t all = 0;
      for (size_t k = 0; k < from; ++k) {
        all |= (w.reg(i.r[1 + k])[l] & (~uint64_t{0} >> (64 - width))) << (k * width);
      }
      w.reg(i.r[0])[l] = all;
    });
  }
}

enum class Space { kShared, kGlobal, kParameter };

Space space(const Instruction& i) {
  return i.has("shared") || i.has("shared::cta") ? Space::kShared
         : i.has("param")                        ? Space::kParameter
                                                 : Space::kGlobal;  // or generic
}

template <Space kSpace, bool kVolatile>
const char* source(Warp& w, uint64_t address, int64_t bytes, int lane) {
  if constexpr (kVolatile) return w.atomic(address, bytes, lane, kSpace == Space::kShared);
  if constexpr (kSpace == Space::kShared) return w.read_shared(address, bytes, lane);
  if constexpr (kSpace == Space::kGlobal) return w.read(address, bytes, lane);
  const std::vector<char>& parameters = w.block().launch().parameters;
  if (address + bytes > parameters.size()) throw std::runtime_error("parameters end before");
  return parameters.data() + address;
}

// Atomics of others may change what is volatile meanwhile.
template <Space kSpace, bool kVolatile, typename T>
void load(Warp& w, const Instruction& i, uint32_t lanes) {
  const auto count = i.operands[0].count;
  const uint64_t* address = w.reg(i.r[count]);
  const int64_t offset = i.operands[1].offset;
  Lanes addresses;  // the register may be among those that are loaded
  std::copy_n(address, kLanes, addresses.begin());
  each(lanes, [&](int l) {
    T values[8];
    memcpy(values, source<kSpace, kVolatile>(w, addresses[l] + offset, sizeof(T) * count, l),
           sizeof(T) * count);
    for (int k = 0; k < count; ++k) {
      if constexpr (std::is_integral_v<T>)
        w.reg(i.r[k])[l] = static_cast<int64_t>(values[k]);
      else
        w.reg(i.r[k])[l] = bits_of(values[k]);
    }
  });
}

template <bool kShared, typename T>
void store(Warp& w, const Instruction& i, uint32_t lanes) {
  const auto count = i.operands[1].count;
  each(lanes, [&](int l) {
    const uint64_t address = w.reg(i.r[0])[l] + i.operands[0].offset;
    T values[8];
    for (int k = 0; k < count; ++k) values[k] = get<T>(w.reg(i.r[1 + k])[l]);
    if constexpr (kShared)
      w.write_shared(address, sizeof(T) * count, l, values);
    else
      w.write(address, sizeof(T) * count, l, values);
  });
}

template <Space kSpace, typename T>
Handler load_of(const Instruction& i) {
  return i.has("volatile") ? &load<kSpace, true, T> : &load<kSpace, false, T>;
}

Handler transfer(const Instruction& i, bool loads) {
  return with_type(i, i.part(-1), [&]<typename T>(Type<T>) -> Handler {
    switch (space(i)) {
      case Space::kShared:
        return loads ? load_of<Space::kShared, T>(i) : &store<true, T>;
      case Space::kGlobal:
        return loads ? load_of<Space::kGlobal, T>(i) : &store<false, T>;
      case Space::kParameter:
        if (loads) return &load<Space::kParameter, false, T>;
    }
    unknown(i);
  });
}

// cvta.shared: an address any load takes; cvta.to.shared the other way. Global ones are the same.
template <int kSign>
void convert_shared_address(Warp& w, const Instruction& i, uint32_t lanes) {
  const auto base = reinterpret_cast<uint64_t>(w.block().memory().data());
  uint64_t *d = w.reg(i.r[0]), *a = w.reg(i.r[1]);
  each(lanes, [&](int l) { d[l] = kSign > 0 ? a[l] + base : a[l] - base; });
}

struct AnyBit {
  template <typename T>
  T operator()(T a, T b) const {
    return a | b;
  }
};

template <typename T, typename Op>
void atomic(Warp& w, const Instruction& i, uint32_t lanes) {  // atom d, [a], b
  each(lanes, [&](int l) {
    const uint64_t address = w.reg(i.r[1])[l] + i.operands[1].offset;
    char* at = w.atomic(address, sizeof(T), l, space(i) == Space::kShared);
    T old;
    memcpy(&old, at, sizeof(T));
    const T now = Op{}(old, get<T>(w.reg(i.r[2])[l]));
    memcpy(at, &now, sizeof(T));
    w.reg(i.r[0])[l] = bits_of(old);
  });
}

Handler atomic_operation(const Instruction& i) {
  return with_integer(i, [&]<typename T>(Type<T>) -> Handler {
    if (i.has("add")) return &atomic<T, Add>;
    if (i.has("min")) return &atomic<T, Least>;
    if (i.has("max")) return &atomic<T, Greatest>;
    if (i.has("or")) return &atomic<T, AnyBit>;
    unknown(i);
  });
}

// cp.async [to], [from], bytes(, bytes given; the others are zero)
void copy_async(Warp& w, const Instruction& i, uint32_t lanes) {
  each(lanes, [&](int l) {
    const uint64_t to = w.reg(i.r[0])[l] + i.operands[0].offset;
    const uint64_t from = w.reg(i.r[1])[l] + i.operands[1].offset;
    const auto bytes = static_cast<int>(w.reg(i.r[2])[l]);
    const int given = i.r.size() > 3 ? static_cast<int>(w.reg(i.r[3])[l]) : bytes;
    if (given < 0 || given > bytes) throw std::runtime_error("cp.async: more given than copied");
    char rubbish[16];  // until it has arrived
    memset(rubbish, kRubbish, sizeof(rubbish));
    w.write_shared(to, bytes, l, rubbish);
    const char* at = given ? w.read(from, bytes, l) : nullptr;
    w.copies.push_back({l, to, at, bytes, given});
  });
}

}  // namespace

Handler memory_access(const Instruction& i) {
  const std::string& name = i.name();
  if (name == "mov" && i.part(1) == "pred") return &move<uint8_t>;
  if (name == "mov") {
    return with_type(i, i.part(-1), []<typename T>(Type<T>) -> Handler { return &move<T>; });
  }
  if (name == "ld") return transfer(i, true);
  if (name == "st") return transfer(i, false);
  if (name == "prefetch" || name == "fence") return &nothing;
  if (name == "cvta") {
    if (!i.has("shared")) return &move<uint64_t>;
    return i.has("to") ? &convert_shared_address<-1> : &convert_shared_address<1>;
  }
  if (name == "atom") return atomic_operation(i);
  if (name == "cp" && i.has("async")) {
    if (i.has("commit_group")) {
      return [](Warp& w, const Instruction&, uint32_t) {
        w.groups.push_back(std::exchange(w.copies, {}));
      };
    }
    if (i.has("wait_group")) {
      return [](Warp& w, const Instruction& own, uint32_t) { w.arrive(w.reg(own.r[0])[0]); };
    }
    if (i.has("shared") && i.has("global")) return &copy_async;
  }
  return nullptr;
}

}  // namespace ptx
