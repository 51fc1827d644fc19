// The most a core can do: dependent-free multiply-adds on registers, for the benchmark's "fraction of peak".
#include "kernels.h"

namespace rw {
namespace {

// Widths that a compiler turns into full vectors; the volatile sink keeps the loops.
int64_t int8_ops(int64_t rounds) {
  int32_t sum[64] = {};
  int16_t a[64], b[64];
  for (int k = 0; k < 64; ++k) a[k] = static_cast<int16_t>(k), b[k] = static_cast<int16_t>(1 + k % 3);
  for (int64_t r = 0; r < rounds; ++r)
    for (int k = 0; k < 64; ++k) sum[k] += a[k] * b[k];
  volatile int32_t sink = 0;
  for (int k = 0; k < 64; ++k) sink = sink + sum[k];
  return rounds * 64 * 2;
}

int64_t float_ops(int64_t rounds) {
  float sum[64] = {};
  float a[64], b[64];
  for (int k = 0; k < 64; ++k) a[k] = static_cast<float>(k) * 1e-3f, b[k] = 0.999f;
  for (int64_t r = 0; r < rounds; ++r)
    for (int k = 0; k < 64; ++k) sum[k] = sum[k] * b[k] + a[k];
  volatile float sink = 0;
  for (int k = 0; k < 64; ++k) sink = sink + sum[k];
  return rounds * 64 * 2;
}

}  // namespace

extern const PeakKernel peak_portable = {int8_ops, float_ops};

}  // namespace rw
