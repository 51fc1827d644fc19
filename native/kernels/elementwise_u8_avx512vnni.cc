// add_u8 and mul_u8, 64 codes at a time.
//
// Codes become floats without a conversion: the bytes of x, widened to 16 bits, are interleaved with 0x4b00, which makes the
// float 2^23 + x; taking 2^23 + z off is exact and leaves x - z. Interleaving works within lanes of 16 bytes, so vector j holds
// in lane L the codes 16*L + 4*j .. + 3; packing with packs and packus puts them in order again.
#include "codes_simd.h"

namespace rw {
namespace {

struct Four {
  __m512 v0, v1, v2, v3;
};

RW_INLINE __m512 biased(int zero) { return _mm512_set1_ps(8388608.0f + static_cast<float>(zero)); }

// x - zero for 64 codes.
RW_INLINE Four differences(__m512i x, __m512 biased_zero) {
  const __m512i none = _mm512_setzero_si512(), exponent = _mm512_set1_epi16(0x4b00);
  const __m512i low = _mm512_unpacklo_epi8(x, none), high = _mm512_unpackhi_epi8(x, none);
  return {_mm512_sub_ps(_mm512_castsi512_ps(_mm512_unpacklo_epi16(low, exponent)), biased_zero),
          _mm512_sub_ps(_mm512_castsi512_ps(_mm512_unpackhi_epi16(low, exponent)), biased_zero),
          _mm512_sub_ps(_mm512_castsi512_ps(_mm512_unpacklo_epi16(high, exponent)), biased_zero),
          _mm512_sub_ps(_mm512_castsi512_ps(_mm512_unpackhi_epi16(high, exponent)), biased_zero)};
}

RW_INLINE Four operator*(const Four& a, const Four& b) {
  return {_mm512_mul_ps(a.v0, b.v0), _mm512_mul_ps(a.v1, b.v1), _mm512_mul_ps(a.v2, b.v2), _mm512_mul_ps(a.v3, b.v3)};
}
RW_INLINE Four operator+(const Four& a, const Four& b) {
  return {_mm512_add_ps(a.v0, b.v0), _mm512_add_ps(a.v1, b.v1), _mm512_add_ps(a.v2, b.v2), _mm512_add_ps(a.v3, b.v3)};
}

// 64 codes in natural order; `zero` as packs_epi32 leaves them. What lies above int32 would turn negative, so it is kept down;
// what lies below turns into the lowest int32 and saturates.
RW_INLINE __m512i codes_of(const Four& x, __m512i zero_low, __m512i zero_high, __m512i lo, __m512i hi) {
  const __m512 top = _mm512_set1_ps(32767.0f);
  const auto round = [&](__m512 v) { return _mm512_cvtps_epi32(_mm512_min_ps(v, top)); };
  const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(round(x.v0), round(x.v1)), zero_low);
  const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(round(x.v2), round(x.v3)), zero_high);
  return _mm512_max_epu8(_mm512_min_epu8(_mm512_packus_epi16(low, high), hi), lo);
}

// Lane L of vector j becomes lane j of vector L, which turns natural order into that of `differences`.
RW_INLINE Four lanes_transposed(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab_low = _mm512_shuffle_f32x4(a, b, 0x44), ab_high = _mm512_shuffle_f32x4(a, b, 0xee);
  const __m512 cd_low = _mm512_shuffle_f32x4(c, d, 0x44), cd_high = _mm512_shuffle_f32x4(c, d, 0xee);
  return {_mm512_shuffle_f32x4(ab_low, cd_low, 0x88), _mm512_shuffle_f32x4(ab_low, cd_low, 0xdd), _mm512_shuffle_f32x4(ab_high, cd_high, 0x88),
          _mm512_shuffle_f32x4(ab_high, cd_high, 0xdd)};
}

// Entry (k mod c) of p at lane k for c = 16 and 32, else entries 0..n-1; in the order of `differences`.
RW_INLINE Four constants(const float* p, int c, int n) {
  if (c == 16) return lanes_transposed(_mm512_loadu_ps(p), _mm512_loadu_ps(p), _mm512_loadu_ps(p), _mm512_loadu_ps(p));
  if (c == 32) return lanes_transposed(_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16), _mm512_loadu_ps(p), _mm512_loadu_ps(p + 16));
  const auto part = [&](int i) { return n <= i ? _mm512_setzero_ps() : load_floats(p + i, n - i < 16 ? n - i : 16).v; };
  return lanes_transposed(part(0), part(16), part(32), part(48));
}

RW_INLINE __m512i as_ints(__m512 v) { return _mm512_castps_si512(v); }

// Rows whose pixels lie side by side are walked as one run: in mul always, in add, whose constants belong to channels, where
// these repeat within a vector. Where they repeat but pixels lie apart, a vector is put together from four or two of them.
bool side_by_side(const Image& a) { return a.pixel == a.c; }
bool repeats(int c) { return c == 16 || c == 32; }

template <int c>
RW_INLINE __m512i load_pixels(const uint8_t* p, int64_t pixel) {
  if constexpr (c == 32) {
    const auto half = [&](int i) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i * pixel)); };
    return _mm512_inserti64x4(_mm512_castsi256_si512(half(0)), half(1), 1);
  } else {
    const auto quarter = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * pixel)); };
    const __m512i two = _mm512_inserti32x4(_mm512_castsi128_si512(quarter(0)), quarter(1), 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(two, quarter(2), 2), quarter(3), 3);
  }
}

template <int c>
RW_INLINE void store_pixels(uint8_t* p, int64_t pixel, __m512i codes) {
  if constexpr (c == 32) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(codes));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + pixel), _mm512_extracti64x4_epi64(codes, 1));
  } else {
    const auto store = [&](int i, __m128i quarter) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i * pixel), quarter); };
    store(0, _mm512_castsi512_si128(codes)), store(1, _mm512_extracti32x4_epi32(codes, 1));
    store(2, _mm512_extracti32x4_epi32(codes, 2)), store(3, _mm512_extracti32x4_epi32(codes, 3));
  }
}

template <int c>
struct Channels {
  static constexpr int value = c;
};

// y = body(a, b) for the codes of rows [begin, end), 64 or fewer at a time, in the channels from `first`.
template <class F>
RW_INLINE void walk(const Image& a, const Image& b, const Image& y, bool whole_rows, int first, int begin, int end, const F& body) {
  const int64_t run = whole_rows ? static_cast<int64_t>(y.w) * y.c : y.c - first < 64 ? y.c - first : 64;
  const int pixels = whole_rows ? 1 : y.w;
  const int64_t a_pixel = a.pixel, b_pixel = b.pixel, y_pixel = y.pixel;
  for (int r = begin; r < end; ++r) {
    const uint8_t *pa = pixel_at(a, r, 0) + first, *pb = pixel_at(b, r, 0) + first;
    uint8_t* py = pixel_at(y, r, 0) + first;
    int x = 0;
    const auto together = [&](auto channels) {
      constexpr int c = decltype(channels)::value, count = 64 / c;
      for (; x + count <= pixels; x += count, pa += count * a_pixel, pb += count * b_pixel, py += count * y_pixel)
        store_pixels<c>(py, y_pixel, body(load_pixels<c>(pa, a_pixel), load_pixels<c>(pb, b_pixel)));
    };
    if (!whole_rows && y.c == 16) together(Channels<16>{});
    if (!whole_rows && y.c == 32) together(Channels<32>{});
    for (; x < pixels; ++x, pa += a_pixel, pb += b_pixel, py += y_pixel) {
      int64_t i = 0;
      for (; i + 64 <= run; i += 64) _mm512_storeu_si512(py + i, body(_mm512_loadu_si512(pa + i), _mm512_loadu_si512(pb + i)));
      if (i < run) {
        const __mmask64 rest = first64(static_cast<int>(run - i));
        _mm512_mask_storeu_epi8(py + i, rest, body(_mm512_maskz_loadu_epi8(rest, pa + i), _mm512_maskz_loadu_epi8(rest, pb + i)));
      }
    }
  }
}

void add(const Image& a, const Image& b, const Image& y, const AddParams& p, int begin, int end) {
  const bool whole_rows = repeats(y.c) && side_by_side(a) && side_by_side(b) && side_by_side(y);
  const __m512 za = biased(p.za), zb = biased(p.zb);
  const __m512i lo = _mm512_set1_epi8(static_cast<char>(p.lo)), hi = _mm512_set1_epi8(static_cast<char>(p.hi));
  for (int first = 0; first < (whole_rows ? 1 : y.c); first += 64) {
    const int n = y.c - first;
    const Four ma = constants(p.ma + first, y.c, n), mb = constants(p.mb + first, y.c, n);
    const Four zero = constants(reinterpret_cast<const float*>(p.zero) + first, y.c, n);  // only moved
    const __m512i zero_low = _mm512_packs_epi32(as_ints(zero.v0), as_ints(zero.v1)), zero_high = _mm512_packs_epi32(as_ints(zero.v2), as_ints(zero.v3));
    walk(a, b, y, whole_rows, first, begin, end, [=](__m512i xa, __m512i xb) {
      return codes_of(differences(xa, za) * ma + differences(xb, zb) * mb, zero_low, zero_high, lo, hi);
    });
  }
}

void mul(const Image& a, const Image& b, const Image& y, const MulParams& p, int begin, int end) {
  const bool whole_rows = side_by_side(a) && side_by_side(b) && side_by_side(y);
  const __m512 za = biased(p.za), zb = biased(p.zb), m = _mm512_set1_ps(p.m);
  const __m512i lo = _mm512_set1_epi8(static_cast<char>(p.lo)), hi = _mm512_set1_epi8(static_cast<char>(p.hi));
  const __m512i zero = _mm512_set1_epi16(static_cast<int16_t>(p.zy));
  for (int first = 0; first < (whole_rows ? 1 : y.c); first += 64)
    walk(a, b, y, whole_rows, first, begin, end, [=](__m512i xa, __m512i xb) {
      // Products stay below 2^24, so those of floats are exact.
      return codes_of(differences(xa, za) * differences(xb, zb) * Four{m, m, m, m}, zero, zero, lo, hi);
    });
}

}  // namespace

const AddFn add_u8_avx512vnni = add;
const MulFn mul_u8_avx512vnni = mul;

}  // namespace rw
