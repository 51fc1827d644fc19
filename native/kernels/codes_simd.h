// Vectors for kernels on codes, in two widths of one interface: 16 numbers (Ints, Floats) and a register of bytes (Bytes).
// Included by *_avx2.cc and *_avx512vnni.cc files; everything is local to the file that includes it. Loads and stores of n
// elements touch n elements only.
#pragma once
// gcc 12 takes the undefined sources of its own intrinsics for uninitialized variables (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstring>

#include "kernels.h"

#define RW_INLINE static inline __attribute__((always_inline))

namespace rw {
namespace {

#if defined(__AVX512BW__)

constexpr int byte_lanes = 64;
struct Ints {
  __m512i v;
};
struct Floats {
  __m512 v;
};
struct Bytes {
  __m512i v;
};

RW_INLINE __mmask16 first16(int n) { return static_cast<__mmask16>((1u << n) - 1); }
RW_INLINE __mmask64 first64(int n) { return n >= 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1; }

RW_INLINE Ints load_codes(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
RW_INLINE Ints load_codes(const uint8_t* p, int n) { return {_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first16(n), p))}; }
RW_INLINE void store_codes(uint8_t* p, Ints a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v)); }
RW_INLINE void store_codes(uint8_t* p, Ints a, int n) { _mm_mask_storeu_epi8(p, first16(n), _mm512_cvtepi32_epi8(a.v)); }
RW_INLINE Floats load_floats(const float* p) { return {_mm512_loadu_ps(p)}; }
RW_INLINE Floats load_floats(const float* p, int n) { return {_mm512_maskz_loadu_ps(first16(n), p)}; }
RW_INLINE void store_floats(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
RW_INLINE void store_floats(float* p, Floats a, int n) { _mm512_mask_storeu_ps(p, first16(n), a.v); }
RW_INLINE Ints load_ints(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
RW_INLINE Ints load_ints(const int32_t* p, int n) { return {_mm512_maskz_loadu_epi32(first16(n), p)}; }
RW_INLINE Ints ints(int a) { return {_mm512_set1_epi32(a)}; }
RW_INLINE Floats floats(float a) { return {_mm512_set1_ps(a)}; }
RW_INLINE Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
RW_INLINE Ints operator-(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
RW_INLINE Ints larger(Ints a, Ints b) { return {_mm512_max_epi32(a.v, b.v)}; }
RW_INLINE Ints smaller(Ints a, Ints b) { return {_mm512_min_epi32(a.v, b.v)}; }
RW_INLINE Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
RW_INLINE Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
RW_INLINE Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
RW_INLINE Floats larger(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }   // b where a is NaN
RW_INLINE Floats smaller(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
RW_INLINE Floats to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
RW_INLINE Ints nearest_ints(Floats a) { return {_mm512_cvtps_epi32(a.v)}; }

RW_INLINE Bytes load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
RW_INLINE Bytes load_bytes(const uint8_t* p, int n) { return {_mm512_maskz_loadu_epi8(first64(n), p)}; }
RW_INLINE void store_bytes(uint8_t* p, Bytes a) { _mm512_storeu_si512(p, a.v); }
RW_INLINE void store_bytes(uint8_t* p, Bytes a, int n) { _mm512_mask_storeu_epi8(p, first64(n), a.v); }
RW_INLINE Bytes larger(Bytes a, Bytes b) { return {_mm512_max_epu8(a.v, b.v)}; }

#else  // AVX2

constexpr int byte_lanes = 32;

// n bytes, 0 < n <= 16, with zeros behind them. By way of registers: a vector loaded from what was just stored in pieces waits
// until all of them have reached the cache.
RW_INLINE uint64_t load_few8(const uint8_t* p, int n) {
  if (n >= 4) {
    uint32_t low, high;  // they may overlap, with the same bytes in the same places
    std::memcpy(&low, p, 4), std::memcpy(&high, p + n - 4, 4);
    return low | static_cast<uint64_t>(high) << (8 * (n - 4));
  }
  return p[0] | static_cast<uint64_t>(p[n / 2]) << (8 * (n / 2)) | static_cast<uint64_t>(p[n - 1]) << (8 * (n - 1));
}
RW_INLINE __m128i load_few16(const uint8_t* p, int n) {
  if (n <= 8) return _mm_cvtsi64_si128(static_cast<int64_t>(load_few8(p, n)));
  int64_t low;
  std::memcpy(&low, p, 8);
  return _mm_set_epi64x(static_cast<int64_t>(load_few8(p + 8, n - 8)), low);
}

// Stores the first n bytes of a whole vector in memory, 0 < n < 32, as two pieces that may overlap.
RW_INLINE void store_few(uint8_t* y, const uint8_t* x, int n) {
  if (n >= 16) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x)), b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + n - 16));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), a), _mm_storeu_si128(reinterpret_cast<__m128i*>(y + n - 16), b);
  } else if (n >= 8) {
    uint64_t a, b;
    std::memcpy(&a, x, 8), std::memcpy(&b, x + n - 8, 8);
    std::memcpy(y, &a, 8), std::memcpy(y + n - 8, &b, 8);
  } else if (n >= 4) {
    uint32_t a, b;
    std::memcpy(&a, x, 4), std::memcpy(&b, x + n - 4, 4);
    std::memcpy(y, &a, 4), std::memcpy(y + n - 4, &b, 4);
  } else {
    y[0] = x[0], y[n / 2] = x[n / 2], y[n - 1] = x[n - 1];
  }
}

// All ones for the first n of eight words.
RW_INLINE __m256i first8(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }

struct Ints {
  __m256i a, b;
};
struct Floats {
  __m256 a, b;
};
struct Bytes {
  __m256i v;
};

RW_INLINE Ints load_codes(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8)))};
}
RW_INLINE Ints load_codes(const uint8_t* p, int n) {
  const __m128i x = load_few16(p, n);
  return {_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))};
}
// Values must lie in 0..255 (packs and packus work within lanes, the permutation puts them in order).
RW_INLINE void store_codes(uint8_t* p, Ints x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
RW_INLINE void store_codes(uint8_t* p, Ints x, int n) {
  alignas(16) uint8_t whole[16];
  store_codes(whole, x);
  store_few(p, whole, n);
}
RW_INLINE Floats load_floats(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
RW_INLINE Floats load_floats(const float* p, int n) {
  return {_mm256_maskload_ps(p, first8(n)), _mm256_maskload_ps(p + 8, first8(n - 8))};
}
RW_INLINE void store_floats(float* p, Floats x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
RW_INLINE void store_floats(float* p, Floats x, int n) {
  _mm256_maskstore_ps(p, first8(n), x.a), _mm256_maskstore_ps(p + 8, first8(n - 8), x.b);
}
RW_INLINE Ints load_ints(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
RW_INLINE Ints load_ints(const int32_t* p, int n) {
  return {_mm256_maskload_epi32(p, first8(n)), _mm256_maskload_epi32(p + 8, first8(n - 8))};
}
RW_INLINE Ints ints(int x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
RW_INLINE Floats floats(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
RW_INLINE Ints operator+(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
RW_INLINE Ints operator-(Ints x, Ints y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
RW_INLINE Ints larger(Ints x, Ints y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
RW_INLINE Ints smaller(Ints x, Ints y) { return {_mm256_min_epi32(x.a, y.a), _mm256_min_epi32(x.b, y.b)}; }
RW_INLINE Floats operator+(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
RW_INLINE Floats operator*(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
RW_INLINE Floats operator/(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
RW_INLINE Floats larger(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }  // y where x is NaN
RW_INLINE Floats smaller(Floats x, Floats y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
RW_INLINE Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
RW_INLINE Ints nearest_ints(Floats x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }

RW_INLINE Bytes load_bytes(const uint8_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
RW_INLINE Bytes load_bytes(const uint8_t* p, int n) {
  if (n <= 16) return {_mm256_zextsi128_si256(load_few16(p, n))};
  return {_mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), load_few16(p + 16, n - 16), 1)};
}
RW_INLINE void store_bytes(uint8_t* p, Bytes x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.v); }
RW_INLINE void store_bytes(uint8_t* p, Bytes x, int n) {
  alignas(32) uint8_t whole[32];
  store_bytes(whole, x);
  store_few(p, whole, n);
}
RW_INLINE Bytes larger(Bytes x, Bytes y) { return {_mm256_max_epu8(x.v, y.v)}; }

#endif

// clamp(rint(v) + zero, lo, hi), with rint(v) kept within int16 (both bounds are integers, so clamping first is the same).
RW_INLINE Ints to_codes(Floats v, Ints zero, Ints lo, Ints hi) {
  const Floats bounded = smaller(larger(v, floats(-32768.0f)), floats(32767.0f));
  return smaller(larger(nearest_ints(bounded) + zero, lo), hi);
}

RW_INLINE uint8_t* pixel_at(const Image& image, int64_t y, int64_t x) {
  return static_cast<uint8_t*>(image.data) + y * image.row + x * image.pixel;
}

}  // namespace
}  // namespace rw
