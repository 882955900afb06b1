// Rotates the queries and keys of one token after the other; its head fits into the L1 cache.

#include "cpu/rotary_append.h"

#include "cpu/kernels/norm.h"

namespace dspark::DSPARK_ISA {
namespace {

template <typename From, typename To>
DSPARK_INLINE void convert(const From* from, int64_t size, To* to) {
  for (int64_t i = 0; i < size; i += kLanes) {
    store_up_to(to + i, load_up_to(from + i, size - i), size - i);
  }
}

// One head: normed if there is a weight, then rotated; the pairs are (i, i + size / 2).
template <typename T>
DSPARK_INLINE void rotate(const T* from, const T* norm_weight, float eps, const float* cos,
                          const float* sin, int64_t size, T* to) {
  const int64_t half = size / 2;
  const float scale = norm_weight != nullptr ? rms_scale(from, size, eps) : 1.0f;
  for (int64_t i = 0, j = half; i < half; i += kLanes, j += kLanes) {
    const int64_t left = half - i;
    Floats x = load_up_to(from + i, left), y = load_up_to(from + j, left);
    if (norm_weight != nullptr) {
      x = x * scale * load_up_to(norm_weight + i, left);
      y = y * scale * load_up_to(norm_weight + j, left);
    }
    store_up_to(to + i, x * load_up_to(cos + i, left) - y * load_up_to(sin + i, left), left);
    store_up_to(to + j, y * load_up_to(cos + j, left) + x * load_up_to(sin + j, left), left);
  }
}

template <typename T>
void rotate_tokens(const RotaryAppend& p, int64_t begin, int64_t end) {
  const int64_t size = p.head_dim, all_heads = p.heads + 2 * p.kv_heads;
  float cos[kMaxRotaryDim], sin[kMaxRotaryDim];
  for (int64_t token = begin; token < end; ++token) {
    const int64_t angle = p.angle(token);
    convert((const T*)p.cos + angle * size, size, cos);
    convert((const T*)p.sin + angle * size, size, sin);
    const T* from = (const T*)p.qkv + token * all_heads * size;
    T* q = (T*)p.q + token * p.heads * size;
    for (int64_t head = 0; head < p.heads; ++head, from += size, q += size) {
      rotate(from, (const T*)p.q_norm_weight, p.eps, cos, sin, size, q);
    }
    int64_t block, place;
    if (!p.slot(token, &block, &place)) continue;
    T* k = (T*)p.k_cache + block * p.k_stride[0] + place * p.k_stride[1];
    T* v = (T*)p.v_cache + block * p.v_stride[0] + place * p.v_stride[1];
    for (int64_t head = 0; head < p.kv_heads; ++head, from += size) {
      rotate(from, (const T*)p.k_norm_weight, p.eps, cos, sin, size, k + head * p.k_stride[2]);
      memcpy(v + head * p.v_stride[2], from + p.kv_heads * size, size * sizeof(T));
    }
  }
}

}  // namespace

void rotary_append_tokens(const RotaryAppend& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto type) { rotate_tokens<decltype(type)>(p, begin, end); });
}

}  // namespace dspark::DSPARK_ISA
