// Tiles of conv_u8 for up to 16 output channels (AVX-512 VNNI), where broadcasting single dwords takes more loads than the two
// per cycle that there are. Instead a vector holds four neighbouring pixels of a row, one in each 128-bit lane:
//
//     acc[g][j], lane 4 L + i  =  channel 4 j + i of pixel 4 g + L                             i, j, L in 0..3
//
// One load and one byte permutation bring 16 activations of each of the pixels into its lane, and vpshufd, which all pipes do,
// broadcasts the dwords within lanes. The weights are repeated for each lane. The packs of the epilogue leave four pixels of
// 16 channels, in order. Floats (REAL) need no packs, so that 4 or 8 channels take one or two vectors only.
//
// The permutation reads 64 bytes (or 128) from the first pixel on. For every byte of them to lie at most 64 behind the last
// tap, pixels are at most 16 bytes apart (`near`), or from 21 to 37 (`middle`). Otherwise each pixel is loaded by itself (`far`).
#pragma once
#include "conv_u8_tiles_avx512vnni.h"

namespace rw {
namespace {

constexpr int kQuadChannels = 16;
constexpr size_t kQuadMostBytes = 24 << 10;  // of weights, so that they stay in L1

struct QuadStrip {
  const uint8_t* x;
  uint8_t* y;
  int64_t x_pixel, y_pixel, tiles;
};

enum Distance { kNear, kMiddle, kFar };
RW_INLINE Distance distance_of(int64_t x_pixel) {
  return x_pixel >= 0 && x_pixel <= 16 ? kNear : x_pixel >= 21 && x_pixel <= 37 ? kMiddle : kFar;
}

// Byte 16 L + i of the lanes is byte L * x_pixel + i of the input.
RW_INLINE __m512i quad_index(int64_t x_pixel) {
  const __m512i lane = _mm512_set_epi64(0x0303030303030303, 0x0303030303030303, 0x0202020202020202, 0x0202020202020202,
                                        0x0101010101010101, 0x0101010101010101, 0, 0);
  const __m512i within = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  // lane * x_pixel, at most 111, byte by byte: lane is 0 to 3
  const __m512i once = _mm512_set1_epi8(static_cast<char>(x_pixel)), twice = _mm512_set1_epi8(static_cast<char>(2 * x_pixel));
  const __m512i one = _mm512_set1_epi8(1), two = _mm512_set1_epi8(2);
  return _mm512_add_epi8(within, _mm512_add_epi8(_mm512_maskz_mov_epi8(_mm512_test_epi8_mask(lane, one), once),
                                                 _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(lane, two), twice)));
}

RW_INLINE __m128i load_16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

template <Distance distance>
RW_INLINE __m512i quad_load(const uint8_t* p, int64_t x_pixel, __m512i index) {
  if constexpr (distance == kFar) {
    __m512i four = _mm512_castsi128_si512(load_16(p));
    four = _mm512_inserti32x4(four, load_16(p + x_pixel), 1);
    four = _mm512_inserti32x4(four, load_16(p + 2 * x_pixel), 2);
    return _mm512_inserti32x4(four, load_16(p + 3 * x_pixel), 3);
  } else {
    const __m512i first = _mm512_loadu_si512(p);
    return distance == kNear ? _mm512_permutexvar_epi8(index, first) : _mm512_permutex2var_epi8(first, index, _mm512_loadu_si512(p + 64));
  }
}

RW_INLINE void store_quad(const Block& b, uint8_t* y, int64_t y_pixel, __m512i codes) {
  if (b.whole && y_pixel == 16) {
    _mm512_storeu_si512(y, codes);
    return;
  }
  store_codes(b, y, _mm512_castsi512_si128(codes));
  store_codes(b, y + y_pixel, _mm512_extracti32x4_epi32(codes, 1));
  store_codes(b, y + 2 * y_pixel, _mm512_extracti32x4_epi32(codes, 2));
  store_codes(b, y + 3 * y_pixel, _mm512_extracti32x4_epi32(codes, 3));
}

// Channels 4 j .. 4 j + 3 of four pixels.
RW_INLINE void store_real_quad(const Block& b, uint8_t* y, int64_t y_pixel, __m512i acc, int j) {
  const __m512 v = real_values(b, acc, j);
  y += 16 * j;
  const auto mask = static_cast<__mmask8>(b.mask >> (4 * j) & 15);
  const auto store = [&](int pixel, __m128 four) {
    auto* to = reinterpret_cast<float*>(y + pixel * y_pixel);
    if (mask == 15)
      _mm_storeu_ps(to, four);
    else
      _mm_mask_storeu_ps(to, mask, four);
  };
  store(0, _mm512_castps512_ps128(v));
  store(1, _mm512_extractf32x4_ps(v, 1));
  store(2, _mm512_extractf32x4_ps(v, 2));
  store(3, _mm512_extractf32x4_ps(v, 3));
}

#define RW_QUAD_POINTER(g) const uint8_t* const x##g = strip.x + g * 4 * strip.x_pixel;
#define RW_QUAD_LOAD(g) const __m512i lanes##g = quad_load<distance>(x##g + at, strip.x_pixel, index);
#define RW_QUAD_DOT(g, dword, vectors)                                                             \
  {                                                                                                \
    const __m512i four = _mm512_shuffle_epi32(lanes##g, static_cast<_MM_PERM_ENUM>(0x55 * dword)); \
    RW_VECTORS_##vectors(RW_MAC, g)                                                                \
  }
#define RW_QUAD_DOTS_2(dword, vectors) RW_QUAD_DOT(0, dword, vectors) RW_QUAD_DOT(1, dword, vectors)
#define RW_QUAD_DOTS_4(dword, vectors) \
  RW_QUAD_DOTS_2(dword, vectors) RW_QUAD_DOT(2, dword, vectors) RW_QUAD_DOT(3, dword, vectors)
#define RW_QUAD_STEP(groups, dword, vectors)                                           \
  {                                                                                    \
    RW_VECTORS_##vectors(RW_WEIGHT, 0) RW_QUAD_DOTS_##groups(dword, vectors) w += 256; \
  }
#define RW_QUAD_AT(g) uint8_t* const to = y + g * 4 * strip.y_pixel;
#define RW_QUAD_REAL(g, j) store_real_quad(b, to, strip.y_pixel, a##g##_##j, j);
#define RW_QUAD_FINISH_1(g) { RW_QUAD_AT(g) RW_VECTORS_1(RW_QUAD_REAL, g) }
#define RW_QUAD_FINISH_2(g) { RW_QUAD_AT(g) RW_VECTORS_2(RW_QUAD_REAL, g) }
#define RW_QUAD_FINISH_4(g)                                                     \
  {                                                                             \
    RW_QUAD_AT(g)                                                               \
    if constexpr (kind == EpilogueKind::real) {                                 \
      RW_VECTORS_4(RW_QUAD_REAL, g)                                             \
    } else {                                                                    \
      const __m512i p = requant_pair(b.channels, RW_A(g, 0), 0, RW_A(g, 1), 1); \
      const __m512i q = requant_pair(b.channels, RW_A(g, 2), 2, RW_A(g, 3), 3); \
      store_quad(b, to, strip.y_pixel, requant_codes<kind>(*b.head, p, q));     \
    }                                                                           \
  }

#define RW_QUAD_SPLIT(g) RW_SPLIT(g, a##g##_0, a##g##_0, 0, a##g##_1, 1, a##g##_2, 2, a##g##_3, 3)
#define RW_QUAD_LOOK_UP(g) store_quad(b, y + g * 4 * strip.y_pixel, strip.y_pixel, RW_CODES(g));

// Codes take all four vectors; only floats may take fewer.
#define RW_QUAD_FINE_4(groups)                                  \
  RW_PIXELS_##groups(RW_HIGH) RW_PIXELS_##groups(RW_QUAD_SPLIT) \
  const FineTables fine = fine_tables(b.head->table);           \
  RW_PIXELS_##groups(RW_QUAD_LOOK_UP)
#define RW_QUAD_FINE_2(groups)
#define RW_QUAD_FINE_1(groups)

// Tiles of 4 * groups pixels, one behind the other, all in one row.
#define RW_QUADS(groups, vectors)                                                          \
  template <EpilogueKind kind, Distance distance>                                          \
  void quads_##groups##x##vectors(const Block& block, const QuadStrip& quad_strip) {       \
    const Block b = block; /* copies that stores through y cannot change */                \
    const QuadStrip strip = quad_strip;                                                    \
    const __m512i index = quad_index(strip.x_pixel);                                       \
    const int32_t* const last = b.tap + b.taps;                                            \
    [[maybe_unused]] constexpr int kVectors = vectors;                                     \
    [[maybe_unused]] __m512i segments[kind == EpilogueKind::poly ? groups * kVectors : 1]; \
    [[maybe_unused]] PolyTables tables = {};                                               \
    uint8_t* y = strip.y;                                                                  \
    int64_t x_at = 0;                                                                      \
    RW_PIXELS_##groups(RW_QUAD_POINTER)                                                    \
    for (int64_t tile = strip.tiles; tile > 0; --tile) {                                   \
      RW_PIXELS_##groups(RW_START_##vectors) const int8_t* w = b.w;                        \
      for (const int32_t* tap = b.tap; tap != last; ++tap) {                               \
        int64_t left = b.depth;                                                            \
        for (int64_t at = *tap + x_at; left > 0; at += 16, left -= 16) {                   \
          RW_PIXELS_##groups(RW_QUAD_LOAD) RW_QUAD_STEP(groups, 0, vectors)                \
          if (left > 4) RW_QUAD_STEP(groups, 1, vectors)                                   \
          if (left > 8) RW_QUAD_STEP(groups, 2, vectors)                                   \
          if (left > 12) RW_QUAD_STEP(groups, 3, vectors)                                  \
        }                                                                                  \
      }                                                                                    \
      if constexpr (kind == EpilogueKind::poly) {                                          \
        RW_PIXELS_##groups(RW_LOCATE_##vectors) tables = poly_tables(*b.head);             \
      }                                                                                    \
      if constexpr (kind == EpilogueKind::fine) {                                          \
        RW_QUAD_FINE_##vectors(groups)                                                     \
      } else {                                                                             \
        RW_PIXELS_##groups(RW_QUAD_FINISH_##vectors)                                       \
      }                                                                                    \
      x_at += 4 * groups * strip.x_pixel;                                                  \
      y += 4 * groups * strip.y_pixel;                                                     \
    }                                                                                      \
  }

RW_QUADS(4, 4)
RW_QUADS(2, 4)
RW_QUADS(4, 2)
RW_QUADS(2, 2)
RW_QUADS(4, 1)
RW_QUADS(2, 1)

using QuadFn = void (*)(const Block&, const QuadStrip&);

struct QuadTiles {
  QuadFn sixteen, eight;  // pixels
};
#define RW_QUAD_TILES(kind, distance) {quads_4x4<EpilogueKind::kind, distance>, quads_2x4<EpilogueKind::kind, distance>}
#define RW_QUAD_KINDS(distance) {RW_QUAD_TILES(linear, distance), RW_QUAD_TILES(table, distance), RW_QUAD_TILES(poly, distance), {nullptr, nullptr}, RW_QUAD_TILES(fine, distance)}
// By distance and epilogue kind (REAL has tiles of its own, by vectors - 1).
constexpr QuadTiles kQuads[3][5] = {RW_QUAD_KINDS(kNear), RW_QUAD_KINDS(kMiddle), RW_QUAD_KINDS(kFar)};
constexpr QuadTiles kRealQuads[4] = {{quads_4x1<EpilogueKind::real, kFar>, quads_2x1<EpilogueKind::real, kFar>},
                                     {quads_4x2<EpilogueKind::real, kFar>, quads_2x2<EpilogueKind::real, kFar>},
                                     RW_QUAD_TILES(real, kFar),
                                     RW_QUAD_TILES(real, kFar)};
constexpr int kQuadLeast = 8;  // pixels of a row

// `pixels` pixels of a row, at least kQuadLeast.
RW_INLINE void run_quads(const Block& b, const uint8_t* x, int64_t x_pixel, uint8_t* y, int64_t y_pixel, int64_t pixels) {
  const int kind = b.head->kind;
  const QuadTiles& tiles = kind == static_cast<int>(EpilogueKind::real) ? kRealQuads[(b.valid - 1) / 4] : kQuads[distance_of(x_pixel)][kind];
  const auto part = [&](QuadFn fn, int64_t from, int64_t count) {
    if (count > 0) fn(b, {x + from * x_pixel, y + from * y_pixel, x_pixel, y_pixel, count});
  };
  const int64_t large = pixels / 16, small = pixels % 16 / 8;
  part(tiles.sixteen, 0, large);
  part(tiles.eight, 16 * large, small);
  part(tiles.eight, pixels - 8, pixels % 8 > 0);  // overlaps the one before and writes the same again
}

}  // namespace
}  // namespace rw
