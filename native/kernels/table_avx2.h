// 256-entry tables of codes with AVX2, 32 look-ups at a time.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace rw {
namespace {

// The low half of each code chooses in every one of 16 parts of 16 entries; its high bits choose among the parts.
static inline __attribute__((always_inline)) __m256i look_up(const uint8_t* table, __m256i codes) {
  const __m256i low = _mm256_and_si256(codes, _mm256_set1_epi8(15));
  const __m256i bit4 = _mm256_slli_epi16(codes, 3), bit5 = _mm256_slli_epi16(codes, 2), bit6 = _mm256_slli_epi16(codes, 1);  // as signs of bytes
  const auto part = [&](int k) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * k))), low);
  };
  const auto two = [&](int k) { return _mm256_blendv_epi8(part(k), part(k + 1), bit4); };
  const auto four = [&](int k) { return _mm256_blendv_epi8(two(k), two(k + 2), bit5); };
  const auto eight = [&](int k) { return _mm256_blendv_epi8(four(k), four(k + 4), bit6); };
  return _mm256_blendv_epi8(eight(0), eight(8), codes);
}

}  // namespace
}  // namespace rw
