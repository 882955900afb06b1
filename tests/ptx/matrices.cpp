// Products of small matrices, spread over the lanes of a warp or of four.

#include <utility>

#include "operations.h"

namespace ptx {
namespace {

// Each lane l has an address of a row of matrix l / 8; it gets two numbers of every matrix.
void load_matrices(Warp& w, const Instruction& i, uint32_t) {
  const auto count = i.operands[0].count;
  const bool transposed = i.has("trans");
  uint16_t rows[kLanes][8];
  for (int l = 0; l < 8 * count; ++l) {
    const uint64_t address = w.reg(i.r[count])[l] + i.operands[1].offset;
    memcpy(rows[l], w.read_shared(address, 16, l), 16);
  }
  for (int m = 0; m < count; ++m) {
    for (int l = 0; l < kLanes; ++l) {
      const int row = l / 4, pair = l % 4 * 2;
      const auto at = [&](int k) {
        return transposed ? rows[8 * m + pair + k][row] : rows[8 * m + row][pair + k];
      };
      w.reg(i.r[m])[l] = uint32_t{at(0)} | uint32_t{at(1)} << 16;
    }
  }
}

// The reverse: a row of matrix l / 8 goes to the address that lane l has.
void store_matrices(Warp& w, const Instruction& i, uint32_t) {
  const auto count = i.operands[1].count;
  if (i.has("trans")) unknown(i);
  for (int l = 0; l < 8 * count; ++l) {
    uint32_t row[4];
    for (int k = 0; k < 4; ++k) {
      row[k] = static_cast<uint32_t>(w.reg(i.r[1 + l / 8])[l % 8 * 4 + k]);
    }
    w.write_shared(w.reg(i.r[0])[l] + i.operands[0].offset, 16, l, row);
  }
}

// mma.m16n8k16: d[4] = a[4] · b[2] + c[4]
template <typename T>
void multiply_matrices(Warp& w, const Instruction& i, uint32_t) {
  float a[16][16], b[16][8], d[16][8];
  const auto half = [&](int r, int l, int k) {
    return static_cast<float>(to_double(get<T>(w.reg(i.r[r])[l] >> (16 * k))));
  };
  for (int l = 0; l < kLanes; ++l) {
    const int row = l / 4, pair = l % 4 * 2;
    for (int k = 0; k < 2; ++k) {
      for (int q = 0; q < 4; ++q) a[row + q % 2 * 8][pair + k + q / 2 * 8] = half(4 + q, l, k);
      for (int q = 0; q < 2; ++q) b[pair + k + q * 8][row] = half(8 + q, l, k);
      for (int q = 0; q < 2; ++q) {
        d[row + q * 8][pair + k] = get<float>(w.reg(i.r[10 + 2 * q + k])[l]);
      }
    }
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    const int row = l / 4, pair = l % 4 * 2;
    for (int q = 0; q < 4; ++q) {
      w.reg(i.r[q])[l] = bits_of(d[row + q / 2 * 8][pair + q % 2]);
    }
  }
}

// What a descriptor of wgmma says of a matrix of 16 columns, or with kTransposed of 16 rows.
struct Descriptor {
  explicit Descriptor(uint64_t bits)
      : start((bits & 0x3FFF) << 4),
        leading((bits >> 16 & 0x3FFF) << 4),
        stride((bits >> 32 & 0x3FFF) << 4),
        mode(static_cast<int>(bits >> 62)) {}

  // The address of two bytes: row m (or column n of the right matrix), k of 16.
  uint64_t address(int row, int k, bool transposed) const {
    const int width = mode == 0 ? 16 : 256 >> mode;  // bytes that lie together
    uint64_t at;
    if (mode == 0) {
      at = transposed ? row / 8 * stride + k / 8 * leading + k % 8 * 16 + row % 8 * 2
                      : row / 8 * stride + k / 8 * leading + row % 8 * 16 + k % 8 * 2;
    } else if (transposed) {
      const int numbers = width / 2;
      at = row / numbers * leading + k / 8 * stride + k % 8 * width + row % numbers * 2;
    } else {
      at = row / 8 * stride + row % 8 * width + k * 2;
    }
    at += start;
    return at ^ (mode == 0 ? 0 : (at >> 7 & (width / 16 - 1)) << 4);
  }

  uint64_t start, leading, stride;
  int mode;  // 0: no swizzle; 1, 2, 3: of 128, 64 and 32 bytes
};

// wgmma d[64 x N], a, b, adds, sign of a, sign of b(, transposed a), transposed b: the rows of one
// of four warps
template <typename T>
void multiply_warp_group(Warp& w, const Warp::Product& product) {
  const Instruction& i = *product.instruction;
  const auto count = i.operands[0].count;
  const auto of_a = i.operands[1].count;
  const int columns = count * 2;      // 16 rows of them are spread over 32 lanes
  const int rest = count + of_a + 1;  // adds, signs, transposed
  const auto flag = [&](int k) { return static_cast<int32_t>(w.reg(i.r[rest + k])[0]); };
  if (flag(1) != 1 || flag(2) != 1) unknown(i);
  const bool transposed_a = of_a == 1 && flag(3), transposed_b = flag(of_a == 1 ? 4 : 3);
  const auto number = [&](uint64_t address, int lane) {
    T value;
    memcpy(&value, w.read_shared(address, 2, lane), 2);
    return static_cast<float>(to_double(value));
  };
  float a[16][16];
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      const int lane = row % 8 * 4 + k % 8 / 2;
      if (of_a == 1) {
        const int own = w.index() % 4 * 16 + row;
        a[row][k] = number(Descriptor(product.a).address(own, k, transposed_a), lane);
      } else {
        const uint64_t both = w.reg(i.r[count + row / 8 + k / 8 * 2])[lane];
        a[row][k] = static_cast<float>(to_double(get<T>(both >> (16 * (k % 2)))));
      }
    }
  }
  for (int n = 0; n < columns; ++n) {
    float b[16];
    for (int k = 0; k < 16; ++k) {
      b[k] = number(Descriptor(product.b).address(n, k, transposed_b), n % 8 * 4 + k % 8 / 2);
    }
    for (int row = 0; row < 16; ++row) {
      const int lane = row % 8 * 4 + n % 8 / 2;
      uint64_t& d = w.reg(i.r[n / 8 * 4 + row / 8 * 2 + n % 2])[lane];
      float sum = product.adds ? get<float>(d) : 0.0f;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k];
      d = bits_of(sum);
    }
  }
}

void issue_product(Warp& w, const Instruction& i, uint32_t) {
  const size_t count = i.operands[0].count, of_a = i.operands[1].count;
  w.products.push_back({&i, w.reg(i.r[count])[0], w.reg(i.r[count + of_a])[0],
                        (w.reg(i.r[count + of_a + 1])[0] & 1) != 0});
}

void await_products(Warp& w, const Instruction& i, uint32_t) {
  while (w.product_groups.size() > w.reg(i.r[0])[0]) {
    for (const Warp::Product& product : w.product_groups.front()) {
      if (product.instruction->has("bf16"))
        multiply_warp_group<Bfloat>(w, product);
      else
        multiply_warp_group<Half>(w, product);
    }
    w.product_groups.erase(w.product_groups.begin());
  }
}

Handler warp_group(const Instruction& i) {
  if (i.part(1) == "fence") return &nothing;
  if (i.part(1) == "commit_group") {
    return [](Warp& w, const Instruction&, uint32_t) {
      w.product_groups.push_back(std::exchange(w.products, {}));
    };
  }
  if (i.part(1) == "wait_group") return &await_products;
  if (i.part(-3) != "f32" || i.part(-2) != i.part(-1)) unknown(i);
  if (i.part(-1) != "bf16" && i.part(-1) != "f16") unknown(i);
  return &issue_product;
}

Handler warp_product(const Instruction& i) {
  if (!i.has("m16n8k16") || i.part(-1) != "f32") unknown(i);
  if (i.has("bf16")) return &multiply_matrices<Bfloat>;
  if (i.has("f16")) return &multiply_matrices<Half>;
  unknown(i);
}

}  // namespace

Handler matrix_product(const Instruction& i) {
  const std::string& name = i.name();
  if (name == "ldmatrix") return &load_matrices;
  if (name == "stmatrix") return &store_matrices;
  if (name == "mma") return warp_product(i);
  if (name == "wgmma") return warp_group(i);
  return nullptr;
}

}  // namespace ptx
