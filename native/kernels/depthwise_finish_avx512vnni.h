// From four vectors of accumulators to 64 results: the epilogues of docs/engine.md for the depthwise kernel.
//
// Lane order. Bytes are interleaved by unpack instructions, which work within lanes of 16 bytes, so accumulator j holds in
// lane L the channels 16*L + 4*j .. + 3. packs_epi32 and packus_epi16 work within lanes too and undo exactly that: the 64
// codes come out in natural order. Constants are stored in the order of the accumulators (see `channel_of` and pack()).
#pragma once
// gcc 12 takes the undefined sources of its own intrinsics for uninitialized variables (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "depthwise_u8.h"
#include "fine_avx512vnni.h"

namespace rw {
namespace {

#define RW_INLINE static inline __attribute__((always_inline))

// Constants of 64 channels, in accumulator order; weights [groups][4][64] follow.
struct alignas(64) Constants {
  int32_t bias[4][16];
  float scale[4][16];
  float out_scale[4][16];
  int16_t zero[2][32];
};

struct Acc {
  __m512i a0, a1, a2, a3;
};

RW_INLINE __m512 scaled(__m512i acc, const float* scale) { return _mm512_mul_ps(_mm512_cvtepi32_ps(acc), _mm512_loadu_ps(scale)); }

// Saturating: within int16 after packs, so that adding the zero point and clamping gives the exact sum's result.
RW_INLINE __m512i sums(__m512i i0, __m512i i1, const int16_t* zero) {
  return _mm512_adds_epi16(_mm512_packs_epi32(i0, i1), _mm512_load_si512(zero));
}

RW_INLINE __m512i codes(__m512i i0, __m512i i1, __m512i i2, __m512i i3, const Constants& k) {
  return _mm512_packus_epi16(sums(i0, i1, k.zero[0]), sums(i2, i3, k.zero[1]));
}

RW_INLINE __m512i rounded(const Acc& a, const Constants& k) {
  return codes(_mm512_cvtps_epi32(scaled(a.a0, k.scale[0])), _mm512_cvtps_epi32(scaled(a.a1, k.scale[1])),
               _mm512_cvtps_epi32(scaled(a.a2, k.scale[2])), _mm512_cvtps_epi32(scaled(a.a3, k.scale[3])), k);
}

// Masked stores of bytes are slow on some CPUs; the branch is always predicted.
RW_INLINE void store_codes(uint8_t* y, __m512i codes, __mmask64 mask) {
  if (mask == ~__mmask64{0})
    _mm512_storeu_si512(y, codes);
  else if (mask == 0xffffffffu)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm512_castsi512_si256(codes));
  else
    _mm512_mask_storeu_epi8(y, mask, codes);
}

template <EpilogueKind>
struct Finish;

template <>
struct Finish<EpilogueKind::linear> {
  static constexpr int out_bytes = 1;
  __m512i lo, hi;
  explicit Finish(const Head& h) : lo(_mm512_set1_epi8(static_cast<char>(h.lo))), hi(_mm512_set1_epi8(static_cast<char>(h.hi))) {}
  inline __attribute__((always_inline)) void operator()(const Acc& a, const Constants& k, uint8_t* y, __mmask64 mask) const {
    store_codes(y, _mm512_max_epu8(_mm512_min_epu8(rounded(a, k), hi), lo), mask);
  }
};

template <>
struct Finish<EpilogueKind::table> {
  static constexpr int out_bytes = 1;
  __m512i t0, t1, t2, t3;
  explicit Finish(const Head& h)
      : t0(_mm512_load_si512(h.table)), t1(_mm512_load_si512(h.table + 64)), t2(_mm512_load_si512(h.table + 128)), t3(_mm512_load_si512(h.table + 192)) {}
  inline __attribute__((always_inline)) void operator()(const Acc& a, const Constants& k, uint8_t* y, __mmask64 mask) const {
    const __m512i i = rounded(a, k);  // the permutes look at 7 bits; the eighth chooses between them
    const __m512i low = _mm512_permutex2var_epi8(t0, i, t1), high = _mm512_permutex2var_epi8(t2, i, t3);
    store_codes(y, _mm512_mask_blend_epi8(_mm512_movepi8_mask(i), low, high), mask);
  }
};

template <>
struct Finish<EpilogueKind::fine> {
  static constexpr int out_bytes = 1;
  const uint8_t* table;
  explicit Finish(const Head& h) : table(h.table) {}
  inline __attribute__((always_inline)) void operator()(const Acc& a, const Constants& k, uint8_t* y, __mmask64 mask) const {
    store_codes(y, fine_look_up(fine_tables(table), places(a, k)), mask);
  }
  RW_INLINE FineCodes places(const Acc& a, const Constants& k) {
    const __m512i low = sums(_mm512_cvtps_epi32(scaled(a.a0, k.scale[0])), _mm512_cvtps_epi32(scaled(a.a1, k.scale[1])), k.zero[0]);
    const __m512i high = sums(_mm512_cvtps_epi32(scaled(a.a2, k.scale[2])), _mm512_cvtps_epi32(scaled(a.a3, k.scale[3])), k.zero[1]);
    return fine_split(low, high);
  }
};

template <>
struct Finish<EpilogueKind::poly> {
  static constexpr int out_bytes = 1;
  __m512 c0[2], c1[2], c2[2], b;
  explicit Finish(const Head& h)
      : c0{_mm512_loadu_ps(h.poly), _mm512_loadu_ps(h.poly + 16)},
        c1{_mm512_loadu_ps(h.poly + 32), _mm512_loadu_ps(h.poly + 48)},
        c2{_mm512_loadu_ps(h.poly + 64), _mm512_loadu_ps(h.poly + 80)},
        b(_mm512_set1_ps(h.poly_b)) {}
  inline __attribute__((always_inline)) __m512i one(__m512i acc, const float* scale, const float* out_scale) const {
    const __m512 v = scaled(acc, scale);
    const __m512 t = _mm512_min_ps(_mm512_max_ps(_mm512_add_ps(v, b), _mm512_setzero_ps()), _mm512_set1_ps(31.0f));
    const __m512i i = _mm512_cvttps_epi32(t);
    const __m512 q2 = _mm512_permutex2var_ps(c2[0], i, c2[1]);
    const __m512 q1 = _mm512_permutex2var_ps(c1[0], i, c1[1]);
    const __m512 q0 = _mm512_permutex2var_ps(c0[0], i, c0[1]);
    const __m512 f = _mm512_add_ps(_mm512_mul_ps(_mm512_add_ps(_mm512_mul_ps(q2, v), q1), v), q0);
    return _mm512_cvtps_epi32(_mm512_mul_ps(f, _mm512_loadu_ps(out_scale)));
  }
  inline __attribute__((always_inline)) void operator()(const Acc& x, const Constants& k, uint8_t* y, __mmask64 mask) const {
    store_codes(y,
                codes(one(x.a0, k.scale[0], k.out_scale[0]), one(x.a1, k.scale[1], k.out_scale[1]), one(x.a2, k.scale[2], k.out_scale[2]),
                      one(x.a3, k.scale[3], k.out_scale[3]), k),
                mask);
  }
};

template <>
struct Finish<EpilogueKind::real> {
  static constexpr int out_bytes = 4;
  __mmask16 scale_lanes;  // none for accumulators as they are
  explicit Finish(const Head& h) : scale_lanes(h.raw ? 0 : 0xffff) {}
  inline __attribute__((always_inline)) __m512 value(__m512i acc, const float* scale) const {
    return _mm512_mask_mul_ps(_mm512_castsi512_ps(acc), scale_lanes, _mm512_cvtepi32_ps(acc), _mm512_loadu_ps(scale));
  }
  // Lane L of the four vectors holds channels 16*L .. + 15: a transposition of 4 x 4 lanes puts them side by side.
  inline __attribute__((always_inline)) void operator()(const Acc& a, const Constants& k, uint8_t* y, __mmask64 mask) const {
    const __m512 v0 = value(a.a0, k.scale[0]), v1 = value(a.a1, k.scale[1]), v2 = value(a.a2, k.scale[2]), v3 = value(a.a3, k.scale[3]);
    const __m512 l01 = _mm512_shuffle_f32x4(v0, v1, 0x44), h01 = _mm512_shuffle_f32x4(v0, v1, 0xee);
    const __m512 l23 = _mm512_shuffle_f32x4(v2, v3, 0x44), h23 = _mm512_shuffle_f32x4(v2, v3, 0xee);
    float* out = reinterpret_cast<float*>(y);
    _mm512_mask_storeu_ps(out, static_cast<__mmask16>(mask), _mm512_shuffle_f32x4(l01, l23, 0x88));
    _mm512_mask_storeu_ps(out + 16, static_cast<__mmask16>(mask >> 16), _mm512_shuffle_f32x4(l01, l23, 0xdd));
    _mm512_mask_storeu_ps(out + 32, static_cast<__mmask16>(mask >> 32), _mm512_shuffle_f32x4(h01, h23, 0x88));
    _mm512_mask_storeu_ps(out + 48, static_cast<__mmask16>(mask >> 48), _mm512_shuffle_f32x4(h01, h23, 0xdd));
  }
};

// Two outputs with the same constants.
template <class F>
RW_INLINE void finish_two(const F& finish, const Constants& k, const Acc& a, uint8_t* ya, __mmask64 ma, const Acc& b, uint8_t* yb, __mmask64 mb) {
  finish(a, k, ya, ma);
  finish(b, k, yb, mb);
}

RW_INLINE void finish_two(const Finish<EpilogueKind::fine>& finish, const Constants& k, const Acc& a, uint8_t* ya, __mmask64 ma, const Acc& b,
                          uint8_t* yb, __mmask64 mb) {
  const FinePair codes = fine_look_up_pair(finish.table, finish.places(a, k), finish.places(b, k));
  store_codes(ya, codes.a, ma);
  store_codes(yb, codes.b, mb);
}

}  // namespace
}  // namespace rw
