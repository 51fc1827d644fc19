// Look-ups in a table of ten bits (the epilogue FINE), 64 at a time (AVX-512 with VBMI).
#pragma once
// gcc 12 takes the undefined sources of its own intrinsics for uninitialized variables (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "kernels.h"

namespace rw {
namespace {

#define RW_FINE_INLINE static inline __attribute__((always_inline))

// Entries of a table of ten bits. `p` and `q` hold kFineLift + z + rint(..), saturated to int16 at the top; where it is less
// than kFineLift, the first entry counts. The low byte chooses among 128 entries, eight times; its own top bit and two bits of
// the high byte choose among those. (Blends run on every pipe, permutations and masks on half of them.)
constexpr int kFineLift = 32767 - (kFineEntries - 1);  // the lower ten bits are 0

struct FineCodes {
  __m512i low, high;
};

// The table, to be kept in registers: from memory it would take sixteen loads per look-up, of two per cycle.
struct FineTables {
  __m512i t[16];
};

RW_FINE_INLINE FineTables fine_tables(const uint8_t* table) {
  FineTables f;
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) f.t[i] = _mm512_load_si512(table + 64 * i);
  return f;
}

// Even and odd bytes, in the order of a packus.
RW_FINE_INLINE FineCodes fine_split(__m512i p, __m512i q) {
  const __m512i lift = _mm512_set1_epi16(kFineLift);
  p = _mm512_max_epi16(p, lift), q = _mm512_max_epi16(q, lift);
  const __m512i even = _mm512_setr_epi64(0x0e0c0a0806040200, 0x4e4c4a4846444240, 0x1e1c1a1816141210, 0x5e5c5a5856545250,
                                         0x2e2c2a2826242220, 0x6e6c6a6866646260, 0x3e3c3a3836343230, 0x7e7c7a7876747270);
  const __m512i odd = _mm512_setr_epi64(0x0f0d0b0907050301, 0x4f4d4b4947454341, 0x1f1d1b1917151311, 0x5f5d5b5957555351,
                                        0x2f2d2b2927252321, 0x6f6d6b6967656361, 0x3f3d3b3937353331, 0x7f7d7b7977757371);
  return {_mm512_permutex2var_epi8(p, even, q), _mm512_permutex2var_epi8(p, odd, q)};
}

struct FineMasks {
  __mmask64 bit7, bit8, bit9;
};

RW_FINE_INLINE FineMasks fine_masks(const FineCodes& c) {
  return {_mm512_movepi8_mask(c.low), _mm512_test_epi8_mask(c.high, _mm512_set1_epi8(1)), _mm512_test_epi8_mask(c.high, _mm512_set1_epi8(2))};
}

// Among 256 entries in four registers.
RW_FINE_INLINE __m512i fine_part(__m512i t0, __m512i t1, __m512i t2, __m512i t3, __m512i low, __mmask64 bit7) {
  return _mm512_mask_blend_epi8(bit7, _mm512_permutex2var_epi8(t0, low, t1), _mm512_permutex2var_epi8(t2, low, t3));
}

RW_FINE_INLINE __m512i fine_look_up(const FineTables& f, const FineCodes& c) {
  const FineMasks m = fine_masks(c);
  const __m512i* t = f.t;
  const __m512i r0 = fine_part(t[0], t[1], t[2], t[3], c.low, m.bit7), r1 = fine_part(t[4], t[5], t[6], t[7], c.low, m.bit7);
  const __m512i r01 = _mm512_mask_blend_epi8(m.bit8, r0, r1);
  const __m512i r2 = fine_part(t[8], t[9], t[10], t[11], c.low, m.bit7), r3 = fine_part(t[12], t[13], t[14], t[15], c.low, m.bit7);
  return _mm512_mask_blend_epi8(m.bit9, r01, _mm512_mask_blend_epi8(m.bit8, r2, r3));
}

// Two look-ups that share the loads of the table, where there are no registers to keep it.
struct FinePair {
  __m512i a, b;
};

RW_FINE_INLINE FinePair fine_look_up_half(const uint8_t* table, const FineCodes& a, const FineMasks& ma, const FineCodes& b, const FineMasks& mb) {
  __m512i ra[2], rb[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const uint8_t* t = table + 256 * i;
    const __m512i t0 = _mm512_load_si512(t), t1 = _mm512_load_si512(t + 64), t2 = _mm512_load_si512(t + 128), t3 = _mm512_load_si512(t + 192);
    ra[i] = fine_part(t0, t1, t2, t3, a.low, ma.bit7);
    rb[i] = fine_part(t0, t1, t2, t3, b.low, mb.bit7);
  }
  return {_mm512_mask_blend_epi8(ma.bit8, ra[0], ra[1]), _mm512_mask_blend_epi8(mb.bit8, rb[0], rb[1])};
}

RW_FINE_INLINE FinePair fine_look_up_pair(const uint8_t* table, const FineCodes& a, const FineCodes& b) {
  const FineMasks ma = fine_masks(a), mb = fine_masks(b);
  const FinePair low = fine_look_up_half(table, a, ma, b, mb), high = fine_look_up_half(table + 512, a, ma, b, mb);
  return {_mm512_mask_blend_epi8(ma.bit9, low.a, high.a), _mm512_mask_blend_epi8(mb.bit9, low.b, high.b)};
}

}  // namespace
}  // namespace rw
