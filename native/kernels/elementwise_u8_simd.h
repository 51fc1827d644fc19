// The ways between codes and floats, 16 numbers at a time.
//
// Each loop body is a lambda over (index, n...): called without n for whole blocks, with n for the rest of a run.
#pragma once
#include "codes_simd.h"

namespace rw {
namespace {

template <class F>
RW_INLINE void by_sixteen(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) f(i);
  if (i < n) f(i, static_cast<int>(n - i));
}

// Where the pixels of all images lie side by side, a row is one run of w * c codes.
RW_INLINE bool side_by_side(const Image& a) { return a.pixel == a.c; }

void quantize_run(const float* x, int64_t x_step, uint8_t* y, int64_t y_step, int64_t n, float scale, int zero) {
  if (x_step != 1 || y_step != 1) return quantize_portable(x, x_step, y, y_step, n, scale, zero);
  const Floats s = floats(scale);
  const Ints z = ints(zero), lo = ints(0), hi = ints(255);
  by_sixteen(n, [&](int64_t i, auto... rest) { store_codes(y + i, to_codes(load_floats(x + i, rest...) / s, z, lo, hi), rest...); });
}

void quantize_each(const float* x, uint8_t* y, int64_t n, const float* scale, const int32_t* zero) {
  const Ints lo = ints(0), hi = ints(255);
  by_sixteen(n, [&](int64_t i, auto... rest) {
    const Floats v = load_floats(x + i, rest...) / load_floats(scale + i, rest...);
    store_codes(y + i, to_codes(v, load_ints(zero + i, rest...), lo, hi), rest...);
  });
}

void dequantize_run(const uint8_t* x, int64_t x_step, float* y, int64_t y_step, int64_t n, float scale, int zero) {
  if (x_step != 1 || y_step != 1) return dequantize_portable(x, x_step, y, y_step, n, scale, zero);
  const Floats s = floats(scale);
  const Ints z = ints(zero);
  by_sixteen(n, [&](int64_t i, auto... rest) { store_floats(y + i, to_floats(load_codes(x + i, rest...) - z) * s, rest...); });
}

void dequantize_each(const uint8_t* x, float* y, int64_t n, const float* scale, const int32_t* zero) {
  by_sixteen(n, [&](int64_t i, auto... rest) {
    const Ints q = load_codes(x + i, rest...) - load_ints(zero + i, rest...);
    store_floats(y + i, to_floats(q) * load_floats(scale + i, rest...), rest...);
  });
}

}  // namespace
}  // namespace rw
