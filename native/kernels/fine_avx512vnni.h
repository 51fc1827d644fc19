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
// the high byte choose among those. Under a mask, vpermi2b leaves what it does not look up as it is: half of the choice is free.
constexpr int kFineLift = 32767 - (kFineEntries - 1);  // the lower ten bits are 0

RW_FINE_INLINE __m512i fine_part(const uint8_t* table, __m512i low, __mmask64 upper, __mmask64 lower) {
  const __m512i some = _mm512_mask2_permutex2var_epi8(_mm512_load_si512(table + 128), low, upper, _mm512_load_si512(table + 192));
  return _mm512_mask2_permutex2var_epi8(_mm512_load_si512(table), some, lower, _mm512_load_si512(table + 64));
}

RW_FINE_INLINE __m512i fine_codes(const uint8_t* table, __m512i p, __m512i q) {
  const __m512i lift = _mm512_set1_epi16(kFineLift);
  p = _mm512_max_epi16(p, lift), q = _mm512_max_epi16(q, lift);
  // Even and odd bytes, in the order of a packus.
  const __m512i even = _mm512_setr_epi64(0x0e0c0a0806040200, 0x4e4c4a4846444240, 0x1e1c1a1816141210, 0x5e5c5a5856545250,
                                         0x2e2c2a2826242220, 0x6e6c6a6866646260, 0x3e3c3a3836343230, 0x7e7c7a7876747270);
  const __m512i odd = _mm512_setr_epi64(0x0f0d0b0907050301, 0x4f4d4b4947454341, 0x1f1d1b1917151311, 0x5f5d5b5957555351,
                                        0x2f2d2b2927252321, 0x6f6d6b6967656361, 0x3f3d3b3937353331, 0x7f7d7b7977757371);
  const __m512i low = _mm512_permutex2var_epi8(p, even, q), high = _mm512_permutex2var_epi8(p, odd, q);
  const __mmask64 upper = _mm512_movepi8_mask(low), lower = _knot_mask64(upper);
  const __mmask64 bit8 = _mm512_test_epi8_mask(high, _mm512_set1_epi8(1)), bit9 = _mm512_test_epi8_mask(high, _mm512_set1_epi8(2));
  const __m512i t0 = fine_part(table, low, upper, lower), t1 = fine_part(table + 256, low, upper, lower);
  const __m512i t2 = fine_part(table + 512, low, upper, lower), t3 = fine_part(table + 768, low, upper, lower);
  return _mm512_mask_blend_epi8(bit9, _mm512_mask_blend_epi8(bit8, t0, t1), _mm512_mask_blend_epi8(bit8, t2, t3));
}

}  // namespace
}  // namespace rw
