// From accumulators to codes, 64 at a time (AVX-512 with VBMI). Included by kernel files of that path only.
//
// Two packs and a packus interleave four vectors of accumulators within 128-bit lanes:
//
//     byte 16 L + 4 j + i  of the result  =  lane 4 L + i of vector j        L, j, i in 0..3
//
// so weights and constants are stored in the order that makes this the natural one.
// Multiplications and additions are separate intrinsics; the build forbids contraction (-ffp-contract=off).
#pragma once
#include "fine_avx512vnni.h"
#include "float_math.h"
#include "kernels.h"

namespace rw {
namespace {

// The head of a packed block: what all channels share.
struct alignas(64) RequantHead {
  int32_t kind, lo, hi, unary;
  float unary_a, unary_b, poly_b;
  int32_t raw;  // REAL: accumulators as they are
  uint8_t pad[32];
  uint8_t table[kFineEntries];
  float poly[96];  // c0, c1, c2
};

// Constants of the channels at hand, in the order of the accumulators.
struct RequantChannels {
  const float* scale;
  const float* out_scale;
  const int32_t* zero;
};

// POLY goes in two passes over the accumulators of a tile, since its steps depend on each other over some 50 cycles, and a
// scheduler full of waiting instructions stops everything behind them. The first turns accumulators into real values, which stay
// in their registers, and writes down their segments.
RW_INLINE __m512i poly_locate(const RequantHead& h, const RequantChannels& c, __m512i acc, int j, __m512i* segment) {
  const __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), _mm512_load_ps(c.scale + 16 * j));
  const __m512 t = _mm512_add_ps(v, _mm512_set1_ps(h.poly_b));
  // The upper bound as an integer, which any pipe can do; what is too large for an unsigned one becomes the largest.
  const __m512i i = _mm512_cvttps_epu32(_mm512_max_ps(t, _mm512_setzero_ps()));
  _mm512_store_si512(segment, _mm512_min_epu32(i, _mm512_set1_epi32(31)));
  return _mm512_castps_si512(v);
}

// The polynomial, to be kept in registers: from memory its tables would take six loads per vector, of two per cycle.
struct PolyTables {
  __m512 c[6];
};

RW_INLINE PolyTables poly_tables(const RequantHead& h) {
  return {{_mm512_load_ps(h.poly), _mm512_load_ps(h.poly + 16), _mm512_load_ps(h.poly + 32), _mm512_load_ps(h.poly + 48),
           _mm512_load_ps(h.poly + 64), _mm512_load_ps(h.poly + 80)}};
}

// What a tile hands to the epilogue: accumulators, or for POLY what the first pass left.
struct Accumulators {
  __m512i acc;
};
struct PolyValue {
  __m512i v;
  const __m512i* segment;
  const PolyTables& tables;
};

template <EpilogueKind kind>
RW_INLINE auto epilogue_input(__m512i a, const __m512i* segment, const PolyTables& tables) {
  if constexpr (kind == EpilogueKind::poly) {
    return PolyValue{a, segment, tables};
  } else {
    (void)segment, (void)tables;
    return Accumulators{a};
  }
}

// To integers with the zero point. `j` is the vector's place in the block. The zero point is added in 32 bits, where nothing
// saturates yet: the result is the same, and vpaddd runs beside vpdpbusd where vpaddsw takes its turn.
RW_INLINE __m512i requant_round(const RequantChannels& c, const Accumulators& a, int j) {
  const __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(a.acc), _mm512_load_ps(c.scale + 16 * j));
  return _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_load_si512(c.zero + 16 * j));  // half to even, the default mode
}

RW_INLINE __m512i requant_round(const RequantChannels& c, const PolyValue& p, int j) {
  const __m512 v = _mm512_castsi512_ps(p.v);
  const __m512i i = _mm512_load_si512(p.segment);
  __m512 f = _mm512_mul_ps(_mm512_permutex2var_ps(p.tables.c[4], i, p.tables.c[5]), v);
  f = _mm512_mul_ps(_mm512_add_ps(f, _mm512_permutex2var_ps(p.tables.c[2], i, p.tables.c[3])), v);
  f = _mm512_add_ps(f, _mm512_permutex2var_ps(p.tables.c[0], i, p.tables.c[1]));
  f = _mm512_mul_ps(f, _mm512_load_ps(c.out_scale + 16 * j));
  return _mm512_add_epi32(_mm512_cvtps_epi32(f), _mm512_load_si512(c.zero + 16 * j));
}

// Two vectors to 32 int16, saturating.
template <typename A>
RW_INLINE __m512i requant_pair(const RequantChannels& c, const A& a, int ja, const A& b, int jb) {
  return _mm512_packs_epi32(requant_round(c, a, ja), requant_round(c, b, jb));
}

// Two such pairs to 64 codes.
template <EpilogueKind kind>
RW_INLINE __m512i requant_codes(const RequantHead& h, __m512i p, __m512i q) {
  const __m512i codes = _mm512_packus_epi16(p, q);
  if (kind == EpilogueKind::linear)
    return _mm512_min_epu8(_mm512_max_epu8(codes, _mm512_set1_epi8(static_cast<char>(h.lo))),
                           _mm512_set1_epi8(static_cast<char>(h.hi)));
  if (kind == EpilogueKind::table) {
    const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(h.table), codes, _mm512_load_si512(h.table + 64));
    const __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(h.table + 128), codes, _mm512_load_si512(h.table + 192));
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
  }
  return codes;
}

// FINE: four vectors to places in the table.
RW_INLINE FineCodes fine_places(const RequantChannels& c, __m512i a, int ja, __m512i b, int jb, __m512i d, int jd, __m512i e, int je) {
  return fine_split(requant_pair(c, Accumulators{a}, ja, Accumulators{b}, jb), requant_pair(c, Accumulators{d}, jd, Accumulators{e}, je));
}

}  // namespace
}  // namespace rw
