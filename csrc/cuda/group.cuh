// The group of a CUDA block, see common/group.h.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/vector4.h"

namespace dspark {

// Lanes of a warp that reduce with each other: a team of a block.
template <int kSize>
class LaneTeam {
 public:
  __device__ LaneTeam(int index, int count) : index_(index), count_(count) {}
  __device__ int lane() const { return threadIdx.x % kSize; }
  __device__ int size() const { return kSize; }
  __device__ int index() const { return index_; }
  __device__ int count() const { return count_; }

  template <typename T>
  __device__ T min(T value) const {
    return reduce(value, [](T a, T b) { return b < a ? b : a; });
  }
  template <typename T>
  __device__ T max(T value) const {
    return reduce(value, [](T a, T b) { return b > a ? b : a; });
  }
  template <typename T>
  __device__ T sum(T value) const {
    return reduce(value, [](T a, T b) { return a + b; });
  }
  template <typename T>
  __device__ const T* of(int lane, const T* address) const {
    const auto bits = reinterpret_cast<unsigned long long>(address);
    return reinterpret_cast<const T*>(__shfl_sync(mask(), bits, lane, kSize));
  }
  // The sum over the lanes before this one.
  __device__ int scan(int value) const {
    int sum = value;
    for (int step = 1; step < kSize; step *= 2) {
      const int before = __shfl_up_sync(mask(), sum, step, kSize);
      if (lane() >= step) sum += before;
    }
    return sum - value;
  }

 private:
  template <typename T, typename F>
  __device__ T reduce(T value, const F& f) const {
    for (int step = kSize / 2; step > 0; step /= 2) {
      value = f(value, __shfl_xor_sync(mask(), value, step, kSize));
    }
    return value;
  }
  // The teams of a warp may be at different places of the program.
  __device__ unsigned mask() const {
    constexpr unsigned kTeam = 0xFFFFFFFF >> (32 - kSize);
    return kTeam << (threadIdx.x % 32 / kSize * kSize);
  }

  int index_, count_;
};

// Numbers of type T that add up to a float: to all its bits for bfloat16, to 22 for float16, whose
// range they have too. Two of each are in a word.
template <typename T>
struct Parts;
template <>
struct Parts<Bf16> {
  static constexpr int kCount = 3;
  __device__ static uint32_t round(float2& rest) {
    const __nv_bfloat162 near = __float22bfloat162_rn(rest);
    const float2 value = __bfloat1622float2(near);
    rest = {rest.x - value.x, rest.y - value.y};
    return reinterpret_cast<const uint32_t&>(near);
  }
  __device__ static void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};
template <>
struct Parts<Fp16> {
  static constexpr int kCount = 2;
  __device__ static uint32_t round(float2& rest) {
    constexpr float kLargest = 65504;
    const auto within = [](float x) { return fminf(fmaxf(x, -kLargest), kLargest); };
    const __half2 near = __floats2half2_rn(within(rest.x), within(rest.y));
    const float2 value = __half22float2(near);
    rest = {rest.x - value.x, rest.y - value.y};
    return reinterpret_cast<const uint32_t&>(near);
  }
  __device__ static void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

// All kThreads threads of a block, teams of kTeam lanes.
template <int kThreads, int kTeam = 8>
class BlockGroup : public Vector4Lanes {
 public:
  struct Scratch {
    int64_t partial[2][32];
  };

  __device__ explicit BlockGroup(Scratch& scratch) : scratch_(scratch) {}
  __device__ int lane() const { return threadIdx.x; }
  __device__ int size() const { return kThreads; }
  __device__ void sync() const { __syncthreads(); }
  __device__ LaneTeam<kTeam> team() const { return {lane() / kTeam, kThreads / kTeam}; }

  template <typename T>
  __device__ T min(T value) {
    const T* partials = exchange(warp().min(value));
    return warp().min(partials[threadIdx.x % kWarps]);
  }
  template <typename T>
  __device__ T max(T value) {
    const T* partials = exchange(warp().max(value));
    return warp().max(partials[threadIdx.x % kWarps]);
  }
  template <typename T>
  __device__ T sum(T value) {
    const T* partials = exchange(warp().sum(value));
    const int lane = threadIdx.x % 32;
    return warp().sum(lane < kWarps ? partials[lane] : T{});
  }
  __device__ int scan(int value, int* total) {
    int before = warp().scan(value);
    const int* partials = exchange(before + value, 31);
    *total = 0;
    DSPARK_UNROLL
    for (int i = 0; i < kWarps; ++i) {  // shuffles would take longer
      if (i == static_cast<int>(threadIdx.x) / 32) before += *total;
      *total += partials[i];
    }
    return before;
  }
  __device__ bool contains(const int64_t* values, int count, int64_t wanted) const {
    return Vector4Lanes::contains(values, count, kThreads, wanted);
  }
  __device__ void lower(int* slot, int value) const { atomicMin(slot, value); }
  __device__ void set_bits(uint32_t* word, uint32_t bits) const { atomicOr(word, bits); }
  __device__ int add(int* counter, int value) const { return atomicAdd(counter, value); }

  // A warp computes 16 rows of 16 columns of each half.
  template <typename T, class Left, class Combine, class Put>
  __device__ void paired_product(int rows, int depth, const Left& left, const T* right,
                                 int right_pitch, const Combine& combine, const Put& put) const {
    using P = Parts<T>;
    constexpr int kSide = 16, kTiles = 2;
    const int row = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;  // of what a lane holds
    for (Tile tile(kSide, kSide, rows, depth); tile.row < rows; tile.next()) {
      __syncwarp();  // the last tile may have parted it
      const int first = tile.row + row, column = tile.column;
      // a lane's four numbers of 16 are side by side, in both matrices: any order will do
      const T* from[2];
      DSPARK_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int f = first + i * 8;
        from[i] = left(f < rows ? f : rows - 1) + quad * 4;
      }
      const T* across = right + (column + row) * right_pitch + quad * 4;
      float sum[kTiles][2][4] = {};
#pragma unroll kUnroll
      for (int k = 0; k < depth; k += kSide) {
        const uint2 upper = *reinterpret_cast<const uint2*>(from[0] + k);
        const uint2 lower = *reinterpret_cast<const uint2*>(from[1] + k);
        const uint32_t both[4] = {upper.x, lower.x, upper.y, lower.y};
        DSPARK_UNROLL
        for (int i = 0; i < kTiles * 2; ++i) {
          const int down = i / 2 * 8 + i % 2 * depth;
          const uint2 b = *reinterpret_cast<const uint2*>(across + down * right_pitch + k);
          const uint32_t own[2] = {b.x, b.y};
          P::multiply(sum[i / 2][i % 2], both, own);
        }
      }
      Vector value[kTiles * 2];  // side by side: all are read before the first is written
      DSPARK_UNROLL
      for (int i = 0; i < kTiles * 2; ++i) {
        const float *one = sum[i / 2][0] + i % 2 * 2, *other = sum[i / 2][1] + i % 2 * 2;
        const int f = first + i % 2 * 8, k = column + i / 2 * 8 + quad * 2;
        value[i] = combine(f < rows ? f : rows - 1, k, from[i % 2] - quad * 4,
                           {one[0], one[1], other[0], other[1]});
      }
      DSPARK_UNROLL
      for (int i = 0; i < kTiles * 2; ++i) {
        const int f = first + i % 2 * 8;
        if (f < rows) put(f, column + i / 2 * 8 + quad * 2, value[i]);
      }
    }
    __syncthreads();
  }

  // A warp computes 16 rows of 16 columns. The factor comes last: before, it could lead out of a
  // float16's range.
  template <typename T>
  __device__ void scaled_product(int rows, int depth, int columns, const float* in, int in_pitch,
                                 const float* scale, float factor, const T* right, int right_pitch,
                                 float* out) const {
    using P = Parts<T>;
    constexpr int kSide = 16;
    // the row and the first of two columns that a lane holds of a quarter of a matrix
    const int row = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
    for (Tile tile(kSide, kSide, rows, columns); tile.row < rows; tile.next()) {
      __syncwarp();  // what came before may have parted it
      const int first = tile.row + row, column = tile.column;
      const float* left = in + first * in_pitch + pair;
      const T* across = right + (column + row) * right_pitch + pair;
      float sum[P::kCount][2][4] = {};  // apart, so that they do not wait for each other
#pragma unroll kUnroll
      for (int k = 0; k < depth; k += kSide) {
        uint32_t a[P::kCount][4];
        DSPARK_UNROLL
        for (int quarter = 0; quarter < 4; ++quarter) {
          const int down = quarter % 2 * 8, at = k + quarter / 2 * 8;
          const float2 x = *reinterpret_cast<const float2*>(left + down * in_pitch + at);
          const float2 by = *reinterpret_cast<const float2*>(scale + pair + at);
          float2 rest{x.x * by.x, x.y * by.y};
          DSPARK_UNROLL
          for (int part = 0; part < P::kCount; ++part) a[part][quarter] = P::round(rest);
        }
        DSPARK_UNROLL
        for (int half = 0; half < 2; ++half) {
          uint32_t b[2];
          DSPARK_UNROLL
          for (int i = 0; i < 2; ++i) {
            b[i] = *reinterpret_cast<const uint32_t*>(across + half * 8 * right_pitch + k + i * 8);
          }
          DSPARK_UNROLL
          for (int part = 0; part < P::kCount; ++part) P::multiply(sum[part][half], a[part], b);
        }
      }
      DSPARK_UNROLL
      for (int half = 0; half < 2; ++half) {
        DSPARK_UNROLL
        for (int part = P::kCount - 1; part > 0; --part) {
          for (int i = 0; i < 4; ++i) sum[part - 1][half][i] += sum[part][half][i];
        }
        for (float& value : sum[0][half]) value *= factor;
        float* to = out + first * columns + column + half * 8 + pair;
        *reinterpret_cast<float2*>(to) = {sum[0][half][0], sum[0][half][1]};
        *reinterpret_cast<float2*>(to + 8 * columns) = {sum[0][half][2], sum[0][half][3]};
      }
    }
    __syncthreads();
  }

 private:
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kUnroll = 2;  // as far as the registers go
  static_assert(kTeam >= kLeastTeam && kThreads % 32 == 0 && kWarps <= 32 &&
                (kWarps & (kWarps - 1)) == 0);

  // The tiles of a matrix that are this warp's, by the first row and column; no division, which
  // would take longer.
  class Tile {
   public:
    __device__ Tile(int height, int width, int rows, int columns)
        : row(0),
          column(threadIdx.x / 32 * width),
          height_(height),
          step_(kWarps * width),
          rows_(rows),
          columns_(columns) {
      wrap();
    }
    __device__ void next() {
      column += step_;
      wrap();
    }
    int row, column;

   private:
    __device__ void wrap() {
      for (; column >= columns_ && row < rows_; column -= columns_) row += height_;
    }
    int height_, step_, rows_, columns_;
  };

  __device__ LaneTeam<32> warp() const { return {lane() / 32, kWarps}; }

  // The value of one lane of every warp. Two buffers take turns: one is written again only after
  // the barrier of the next exchange, which no thread passes before it has read here.
  template <typename T>
  __device__ const T* exchange(T value, int lane = 0) {
    static_assert(sizeof(T) <= sizeof(int64_t));
    T* partials = reinterpret_cast<T*>(scratch_.partial[turn_]);
    turn_ ^= 1;
    if (static_cast<int>(threadIdx.x) % 32 == lane) partials[threadIdx.x / 32] = value;
    __syncthreads();
    return partials;
  }

  Scratch& scratch_;
  int turn_ = 0;
};

}  // namespace dspark
