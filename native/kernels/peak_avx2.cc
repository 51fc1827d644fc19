// The peak of AVX2: vpmaddwd + vpaddd on codes widened to 16 bits (what conv_u8 does there), vfmadd on floats.
#include <immintrin.h>

#include "kernels.h"

namespace rw {
namespace {

constexpr int kChains = 10;

int64_t int8_ops(int64_t rounds) {
  __m256i sum[kChains], a = _mm256_set1_epi16(3), b = _mm256_set1_epi16(1);
  for (int k = 0; k < kChains; ++k) sum[k] = _mm256_setzero_si256();
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 10
    for (int k = 0; k < kChains; ++k) {
      __m256i product = _mm256_madd_epi16(a, b);
      asm volatile("" : "+x"(product));
      sum[k] = _mm256_add_epi32(sum[k], product);
    }
  }
  for (int k = 0; k < kChains; ++k) asm volatile("" : : "x"(sum[k]));
  return rounds * kChains * 16 * 2;
}

int64_t float_ops(int64_t rounds) {
  __m256 sum[kChains], a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(1e-3f);
  for (int k = 0; k < kChains; ++k) sum[k] = _mm256_setzero_ps();
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 10
    for (int k = 0; k < kChains; ++k) sum[k] = _mm256_fmadd_ps(sum[k], a, b);
  }
  for (int k = 0; k < kChains; ++k) asm volatile("" : : "x"(sum[k]));
  return rounds * kChains * 8 * 2;
}

}  // namespace

extern const PeakKernel peak_avx2 = {int8_ops, float_ops};

}  // namespace rw
