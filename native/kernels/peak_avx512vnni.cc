// The peak of AVX-512: vpdpbusd on codes (64 multiply-adds an instruction), vfmadd on floats.
#include <immintrin.h>

#include "kernels.h"

namespace rw {
namespace {

constexpr int kChains = 20;

int64_t int8_ops(int64_t rounds) {
  __m512i sum[kChains], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(1);
  for (int k = 0; k < kChains; ++k) sum[k] = _mm512_setzero_si512();
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 20
    for (int k = 0; k < kChains; ++k) asm volatile("vpdpbusd %2, %1, %0" : "+v"(sum[k]) : "v"(a), "v"(b));
  }
  return rounds * kChains * 64 * 2;
}

int64_t float_ops(int64_t rounds) {
  __m512 sum[kChains], a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(1e-3f);
  for (int k = 0; k < kChains; ++k) sum[k] = _mm512_setzero_ps();
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 20
    for (int k = 0; k < kChains; ++k) asm volatile("vfmadd231ps %2, %1, %0" : "+v"(sum[k]) : "v"(a), "v"(b));
  }
  return rounds * kChains * 16 * 2;
}

}  // namespace

extern const PeakKernel peak_avx512vnni = {int8_ops, float_ops};

}  // namespace rw
