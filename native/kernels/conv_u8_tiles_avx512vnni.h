// Register tiles of conv_u8 (AVX-512 VNNI): pixels x vectors of 16 output channels.
//
//     acc[m][j] += dot4(broadcast(4 activations of pixel m), weights of vector j)        for every tap, every 4 of k
//
// A tile has 24 or more accumulators, each a variable with a name of its own: gcc keeps an array of them in memory. The macros
// below write these names. vpdpbusd takes four cycles and two start per cycle, so eight accumulators hide its latency; more of
// them lower the number of loads per product, of which only two per cycle are possible.
#pragma once
#include "requant_avx512vnni.h"

namespace rw {
namespace {

// One block of up to 64 output channels.
struct Block {
  const RequantHead* head;
  RequantChannels channels;
  const int32_t* bias;
  const int8_t* w;  // [tap][k / 4][vector][channel][4]
  int valid;        // channels that exist
  int taps;
  int64_t depth;    // bytes of a tap, rounded up to 4
  const int32_t* tap;
  uint64_t mask;    // of the valid channels
  bool whole;       // every channel of the block is valid
  __mmask16 scaled; // REAL: all lanes, or none for accumulators as they are
};

// Pixels at equal distances: `tiles` tiles, each a step behind the one before it. Within a tile the pixels may lie anywhere.
constexpr int kMostPixels = 12;

struct Strip {
  const uint8_t* x[kMostPixels];
  uint8_t* y[kMostPixels];
  int64_t tiles, x_step, y_step;
};

// The intrinsic makes gcc copy accumulators around; the instruction itself does not.
#define RW_DOT(acc, x, w) asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w))
#define RW_FOUR(p) _mm512_set1_epi32(*reinterpret_cast<const int32_unaligned*>(p))
typedef int32_t int32_unaligned __attribute__((aligned(1), may_alias));

#define RW_VECTORS_1(F, m) F(m, 0)
#define RW_VECTORS_2(F, m) F(m, 0) F(m, 1)
#define RW_VECTORS_3(F, m) F(m, 0) F(m, 1) F(m, 2)
#define RW_VECTORS_4(F, m) F(m, 0) F(m, 1) F(m, 2) F(m, 3)

#define RW_PIXELS_1(F) F(0)
#define RW_PIXELS_2(F) F(0) F(1)
#define RW_PIXELS_4(F) RW_PIXELS_2(F) F(2) F(3)
#define RW_PIXELS_6(F) RW_PIXELS_4(F) F(4) F(5)
#define RW_PIXELS_8(F) RW_PIXELS_6(F) F(6) F(7)
#define RW_PIXELS_12(F) RW_PIXELS_8(F) F(8) F(9) F(10) F(11)

// How the pixels of a tile go through the epilogue: one by one, in pairs or by four, as many as fill a vector of codes.
#define RW_SINGLES_1(F) F(0)
#define RW_SINGLES_6(F) RW_PIXELS_6(F)
#define RW_SINGLES_8(F) RW_PIXELS_8(F)
#define RW_PAIRS_1(F) F(0, 0)
#define RW_PAIRS_12(F) F(0, 1) F(2, 3) F(4, 5) F(6, 7) F(8, 9) F(10, 11)
#define RW_QUADS_1(F) F(0, 0, 0, 0)
#define RW_QUADS_12(F) F(0, 1, 2, 3) F(4, 5, 6, 7) F(8, 9, 10, 11)

RW_INLINE void store_real(const Block&, uint8_t*, const PolyValue&, int) {}

RW_INLINE void store_codes(const Block& b, uint8_t* y, __m512i codes) {
  if (b.whole)
    _mm512_storeu_si512(y, codes);
  else
    _mm512_mask_storeu_epi8(y, b.mask, codes);
}

RW_INLINE void store_codes(const Block& b, uint8_t* y, __m256i codes) {
  if (b.whole)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), codes);
  else
    _mm256_mask_storeu_epi8(y, static_cast<__mmask32>(b.mask), codes);
}

RW_INLINE void store_codes(const Block& b, uint8_t* y, __m128i codes) {
  if (b.whole)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), codes);
  else
    _mm_mask_storeu_epi8(y, static_cast<__mmask16>(b.mask), codes);
}

RW_INLINE __m512 real_values(const Block& b, __m512i acc, int j) {
  return _mm512_mask_mul_ps(_mm512_castsi512_ps(acc), b.scaled, _mm512_cvtepi32_ps(acc), _mm512_load_ps(b.channels.scale + 16 * j));
}

RW_INLINE void store_real(const Block& b, uint8_t* y, const Accumulators& a, int j) {
  const __m512 v = real_values(b, a.acc, j);
  if (b.whole)
    _mm512_storeu_ps(y + 64 * j, v);
  else
    _mm512_mask_storeu_ps(y + 64 * j, static_cast<__mmask16>(b.mask >> (16 * j)), v);
}

// 64 codes to the pixels they belong to.
RW_INLINE void store_4(const Block& b, uint8_t* y, __m512i codes) { store_codes(b, y, codes); }

RW_INLINE void store_3(const Block& b, uint8_t* y, __m512i codes) {
  codes = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 0, 0, 0, 0), codes);
  if (b.whole) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm512_castsi512_si256(codes));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + 32), _mm512_extracti32x4_epi32(codes, 2));
  } else {
    _mm512_mask_storeu_epi8(y, b.mask, codes);
  }
}

RW_INLINE void store_2(const Block& b, uint8_t* ya, uint8_t* yb, __m512i codes) {
  codes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), codes);
  store_codes(b, ya, _mm512_castsi512_si256(codes));
  store_codes(b, yb, _mm512_extracti64x4_epi64(codes, 1));
}

RW_INLINE void store_1(const Block& b, uint8_t* y0, uint8_t* y1, uint8_t* y2, uint8_t* y3, __m512i codes) {
  codes = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), codes);
  store_codes(b, y0, _mm512_castsi512_si128(codes));
  store_codes(b, y1, _mm512_extracti32x4_epi32(codes, 1));
  store_codes(b, y2, _mm512_extracti32x4_epi32(codes, 2));
  store_codes(b, y3, _mm512_extracti32x4_epi32(codes, 3));
}

template <EpilogueKind kind, typename A>
RW_INLINE void finish_4(const Block& b, uint8_t* y, const A& a0, const A& a1, const A& a2, const A& a3) {
  const RequantHead& h = *b.head;
  if (kind == EpilogueKind::real) {
    store_real(b, y, a0, 0), store_real(b, y, a1, 1), store_real(b, y, a2, 2), store_real(b, y, a3, 3);
  } else {
    const __m512i p = requant_pair(b.channels, a0, 0, a1, 1), q = requant_pair(b.channels, a2, 2, a3, 3);
    store_4(b, y, requant_codes<kind>(h, p, q));
  }
}

template <EpilogueKind kind, typename A>
RW_INLINE void finish_3(const Block& b, uint8_t* y, const A& a0, const A& a1, const A& a2) {
  const RequantHead& h = *b.head;
  if (kind == EpilogueKind::real) {
    store_real(b, y, a0, 0), store_real(b, y, a1, 1), store_real(b, y, a2, 2);
  } else {
    const __m512i p = requant_pair(b.channels, a0, 0, a1, 1), q = requant_pair(b.channels, a2, 2, a2, 2);
    store_3(b, y, requant_codes<kind>(h, p, q));
  }
}

template <EpilogueKind kind, typename A>
RW_INLINE void finish_2(const Block& b, uint8_t* ya, const A& a0, const A& a1, uint8_t* yb, const A& b0, const A& b1) {
  const RequantHead& h = *b.head;
  if (kind == EpilogueKind::real) {
    store_real(b, ya, a0, 0), store_real(b, ya, a1, 1), store_real(b, yb, b0, 0), store_real(b, yb, b1, 1);
  } else {
    const __m512i p = requant_pair(b.channels, a0, 0, a1, 1), q = requant_pair(b.channels, b0, 0, b1, 1);
    store_2(b, ya, yb, requant_codes<kind>(h, p, q));
  }
}

template <EpilogueKind kind, typename A>
RW_INLINE void finish_1(const Block& b, uint8_t* y0, const A& a0, uint8_t* y1, const A& a1, uint8_t* y2, const A& a2, uint8_t* y3,
                        const A& a3) {
  const RequantHead& h = *b.head;
  if (kind == EpilogueKind::real) {
    store_real(b, y0, a0, 0), store_real(b, y1, a1, 0), store_real(b, y2, a2, 0), store_real(b, y3, a3, 0);
  } else {
    const __m512i p = requant_pair(b.channels, a0, 0, a1, 0), q = requant_pair(b.channels, a2, 0, a3, 0);
    store_1(b, y0, y1, y2, y3, requant_codes<kind>(h, p, q));
  }
}

#define RW_ACC(m, j) __m512i a##m##_##j = _mm512_load_si512(b.bias + 16 * j);
#define RW_WEIGHT(m, j) const __m512i w##j = _mm512_load_si512(w + 64 * j);
#define RW_MAC(m, j) RW_DOT(a##m##_##j, four, w##j);
#define RW_POINTER(m) const uint8_t* const x##m = strip.x[m];

#define RW_START_1(m) RW_VECTORS_1(RW_ACC, m)
#define RW_START_2(m) RW_VECTORS_2(RW_ACC, m)
#define RW_START_3(m) RW_VECTORS_3(RW_ACC, m)
#define RW_START_4(m) RW_VECTORS_4(RW_ACC, m)
#define RW_STEP_1(m) { const __m512i four = RW_FOUR(x##m + at); RW_VECTORS_1(RW_MAC, m) }
#define RW_STEP_2(m) { const __m512i four = RW_FOUR(x##m + at); RW_VECTORS_2(RW_MAC, m) }
#define RW_STEP_3(m) { const __m512i four = RW_FOUR(x##m + at); RW_VECTORS_3(RW_MAC, m) }
#define RW_STEP_4(m) { const __m512i four = RW_FOUR(x##m + at); RW_VECTORS_4(RW_MAC, m) }
#define RW_A(m, j) epilogue_input<kind>(a##m##_##j, segments + kVectors * m + j, tables)
#define RW_FINISH_1(m, n, o, p) \
  finish_1<kind>(b, y[m] + y_at, RW_A(m, 0), y[n] + y_at, RW_A(n, 0), y[o] + y_at, RW_A(o, 0), y[p] + y_at, RW_A(p, 0));
#define RW_FINISH_2(m, n) finish_2<kind>(b, y[m] + y_at, RW_A(m, 0), RW_A(m, 1), y[n] + y_at, RW_A(n, 0), RW_A(n, 1));
#define RW_FINISH_3(m) finish_3<kind>(b, y[m] + y_at, RW_A(m, 0), RW_A(m, 1), RW_A(m, 2));
#define RW_FINISH_4(m) finish_4<kind>(b, y[m] + y_at, RW_A(m, 0), RW_A(m, 1), RW_A(m, 2), RW_A(m, 3));

// The function behind REAL, on what a tile has just written. A pixel may stand in for missing ones behind it.
template <int pixels>
RW_INLINE void finish_unary(const Block& b, uint8_t* const* y, int64_t y_at) {
  const RequantHead& h = *b.head;
  if (h.unary == kNone) return;
  for (int m = 0; m < pixels; ++m) {
    if (m > 0 && y[m] == y[m - 1]) continue;
    auto* values = reinterpret_cast<float*>(y[m] + y_at);
    apply_unary(values, values, b.valid, h.unary, h.unary_a, h.unary_b);
  }
}

// The first pass of POLY.
#define RW_LOCATE(m, j) \
  a##m##_##j = poly_locate(*b.head, b.channels, a##m##_##j, j, segments + kVectors * m + j);
#define RW_LOCATE_1(m) RW_VECTORS_1(RW_LOCATE, m)
#define RW_LOCATE_2(m) RW_VECTORS_2(RW_LOCATE, m)
#define RW_LOCATE_3(m) RW_VECTORS_3(RW_LOCATE, m)
#define RW_LOCATE_4(m) RW_VECTORS_4(RW_LOCATE, m)

// FINE goes in two passes, too: when the first has turned all accumulators into places in the table, half of the registers are
// free, and the table is loaded once for the tile.
#define RW_HIGH(m) [[maybe_unused]] __m512i high##m = _mm512_setzero_si512();
#define RW_SPLIT(m, r, a, ja, b_, jb, c, jc, d, jd) \
  { const FineCodes codes = fine_places(b.channels, a, ja, b_, jb, c, jc, d, jd); r = codes.low, high##m = codes.high; }
#define RW_SPLIT_1(m, n, o, p) RW_SPLIT(m, a##m##_0, a##m##_0, 0, a##n##_0, 0, a##o##_0, 0, a##p##_0, 0)
#define RW_SPLIT_2(m, n) RW_SPLIT(m, a##m##_0, a##m##_0, 0, a##m##_1, 1, a##n##_0, 0, a##n##_1, 1)
#define RW_SPLIT_3(m) RW_SPLIT(m, a##m##_0, a##m##_0, 0, a##m##_1, 1, a##m##_2, 2, a##m##_2, 2)
#define RW_SPLIT_4(m) RW_SPLIT(m, a##m##_0, a##m##_0, 0, a##m##_1, 1, a##m##_2, 2, a##m##_3, 3)
#define RW_CODES(m) fine_look_up(fine, {a##m##_0, high##m})
#define RW_LOOK_UP_1(m, n, o, p) store_1(b, y[m] + y_at, y[n] + y_at, y[o] + y_at, y[p] + y_at, RW_CODES(m));
#define RW_LOOK_UP_2(m, n) store_2(b, y[m] + y_at, y[n] + y_at, RW_CODES(m));
#define RW_LOOK_UP_3(m) store_3(b, y[m] + y_at, RW_CODES(m));
#define RW_LOOK_UP_4(m) store_4(b, y[m] + y_at, RW_CODES(m));

#define RW_TILE(pixels, vectors, groups)                                                                             \
  template <EpilogueKind kind>                                                                                       \
  void tile_##pixels##x##vectors(const Block& block, const Strip& strip) {                                           \
    const Block b = block; /* a copy that stores through y cannot change */                                          \
    uint8_t* const* const y = strip.y;                                                                               \
    RW_PIXELS_##pixels(RW_POINTER) const int32_t* const last = b.tap + b.taps;                                       \
    constexpr int kVectors = vectors;                                                                                \
    __m512i segments[kind == EpilogueKind::poly ? pixels * vectors : 1];                                             \
    PolyTables tables = {};                                                                                          \
    int64_t x_at = 0, y_at = 0;                                                                                      \
    for (int64_t tile = strip.tiles; tile > 0; --tile, x_at += strip.x_step, y_at += strip.y_step) {                 \
      RW_PIXELS_##pixels(RW_START_##vectors) const int8_t* w = b.w;                                                  \
      for (const int32_t* tap = b.tap; tap != last; ++tap)                                                           \
        for (int64_t at = *tap + x_at, end = at + b.depth; at < end; at += 4, w += 64 * vectors) {                   \
          RW_VECTORS_##vectors(RW_WEIGHT, 0) RW_PIXELS_##pixels(RW_STEP_##vectors)                                   \
        }                                                                                                            \
      if (kind == EpilogueKind::poly) {                                                                              \
        RW_PIXELS_##pixels(RW_LOCATE_##vectors) tables = poly_tables(*b.head);                                       \
      }                                                                                                              \
      if constexpr (kind == EpilogueKind::fine) {                                                                    \
        RW_PIXELS_##pixels(RW_HIGH) groups##_##pixels(RW_SPLIT_##vectors)                                            \
        const FineTables fine = fine_tables(b.head->table);                                                          \
        groups##_##pixels(RW_LOOK_UP_##vectors)                                                                      \
      } else {                                                                                                       \
        groups##_##pixels(RW_FINISH_##vectors)                                                                       \
      }                                                                                                              \
      if (kind == EpilogueKind::real) finish_unary<pixels>(b, y, y_at);                                              \
    }                                                                                                                \
  }

RW_TILE(6, 4, RW_SINGLES)
RW_TILE(1, 4, RW_SINGLES)
RW_TILE(8, 3, RW_SINGLES)
RW_TILE(1, 3, RW_SINGLES)
RW_TILE(12, 2, RW_PAIRS)
RW_TILE(1, 2, RW_PAIRS)
RW_TILE(12, 1, RW_QUADS)
RW_TILE(1, 1, RW_QUADS)

using TileFn = void (*)(const Block&, const Strip&);

struct TileShape {
  int pixels;
  TileFn run[5];     // by epilogue kind
  TileFn single[5];  // one pixel
};

#define RW_KINDS(name) \
  {name<EpilogueKind::linear>, name<EpilogueKind::table>, name<EpilogueKind::poly>, name<EpilogueKind::real>, name<EpilogueKind::fine>}

// By vectors per block.
constexpr TileShape kTiles[5] = {
    {},
    {12, RW_KINDS(tile_12x1), RW_KINDS(tile_1x1)},
    {12, RW_KINDS(tile_12x2), RW_KINDS(tile_1x2)},
    {8, RW_KINDS(tile_8x3), RW_KINDS(tile_1x3)},
    {6, RW_KINDS(tile_6x4), RW_KINDS(tile_1x4)},
};

}  // namespace
}  // namespace rw
