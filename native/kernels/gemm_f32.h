// The inner product of the float convolutions: P pixels x NV vectors of outputs in registers.
//
//   acc[p][v] = start[v] + sum over taps t and i < k of x[p*step + tap[t]][i] * w[t][i][v]
//
// One element of x is broadcast to a vector and multiplied with NV vectors of weights, so per element there are P*NV
// multiply-adds, P broadcasts and NV loads: with P = 14, NV = 2 (28 accumulators, 2 weights, 1 broadcast of 32 registers)
// the loads take little more than half of the load slots. Pixels are reached from few bases, as base, base+step,
// base+2*step: x86 has 16 integer registers, and a pointer per pixel would live on the stack.
#pragma once
#include "simd_f32.h"

namespace rw {
namespace {

#if defined(__AVX512F__)
constexpr int kMaxPixels = 14, kMaxVectors = 2;
#elif defined(__AVX2__)
constexpr int kMaxPixels = 6, kMaxVectors = 2;
#else
constexpr int kMaxPixels = 4, kMaxVectors = 2;
#endif
constexpr int kBlock = kMaxVectors * W;  // outputs of a full block

template <int P, int NV> struct Tile {
  static constexpr int kBases = (P + 2) / 3;
  template <int... I> RW_INLINE void begin(V* acc, const float* start, Indices<I...>) {
    ((acc[I] = load(start + (I % NV) * W)), ...);
  }

  template <int I> RW_INLINE void pixel(V* acc, const uint8_t* const* base, int64_t step, const V* weight) {
    const V x = set(*reinterpret_cast<const float*>(base[I / 3] + (I % 3) * step));
    acc[I * NV] = fused(x, weight[0], acc[I * NV]);
    if constexpr (NV > 1) acc[I * NV + 1] = fused(x, weight[1], acc[I * NV + 1]);
  }

  template <int... I> RW_INLINE void pixels(V* acc, const uint8_t* const* base, int64_t step, const V* weight, Indices<I...>) {
    (pixel<I>(acc, base, step, weight), ...);
  }

  template <int... I> RW_INLINE void bases(const uint8_t** base, const uint8_t* x, int64_t step, Indices<I...>) {
    ((base[I] = x + 3 * I * step), ...);
  }
  template <int... I> RW_INLINE void advance(const uint8_t** base, Indices<I...>) { ((base[I] += sizeof(float)), ...); }

  // `meanwhile()` is called after every `pause` steps of k: work that does not depend on this tile and fills what the
  // multiply-adds leave idle.
  template <class Meanwhile>
  RW_INLINE void run(V* acc, const uint8_t* x, int64_t step, const int32_t* tap, int taps, int k, const float* w, const float* start,
                     int pause, const Meanwhile& meanwhile) {
    begin(acc, start, typename UpTo<P * NV>::type{});
    int left = pause;
    for (int t = 0; t < taps; t++) {
      const uint8_t* base[kBases];
      bases(base, x + tap[t], step, typename UpTo<kBases>::type{});
      for (int i = k; i > 0;) {
        int stretch = smaller(i, left);
        i -= stretch, left -= stretch;
        do {
          V weight[NV];
          weight[0] = load(w);
          if constexpr (NV > 1) weight[1] = load(w + W);
          pixels(acc, base, step, weight, typename UpTo<P>::type{});
          advance(base, typename UpTo<kBases>::type{});
          w += NV * W;
        } while (--stretch > 0);
        if (left == 0) {
          meanwhile();
          left = pause;
        }
      }
    }
  }

  RW_INLINE void run(V* acc, const uint8_t* x, int64_t step, const int32_t* tap, int taps, int k, const float* w, const float* start) {
    run(acc, x, step, tap, taps, k, w, start, INT32_MAX, [] {});
  }
};

}  // namespace
}  // namespace rw
