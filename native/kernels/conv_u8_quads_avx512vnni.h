// Tiles of conv_u8 for up to 16 output channels (AVX-512 VNNI), where broadcasting single dwords takes more loads than the two
// per cycle that there are. Instead a vector holds four neighbouring pixels of a row, one in each 128-bit lane:
//
//     acc[g][j], lane 4 L + i  =  channel 4 j + i of pixel 4 g + L                             i, j, L in 0..3
//
// One load and one byte permutation bring 16 activations of each of the pixels into its lane, and vpshufd, which all pipes do,
// broadcasts the dwords within lanes. The weights are repeated for each lane. The packs of the epilogue leave four pixels of
// 16 channels, in order.
//
// The permutation reads 64 bytes (or 128) from the first pixel on. For every byte of them to lie at most 64 behind the last
// tap, pixels are at most 16 bytes apart (or from 21 to 37).
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

RW_INLINE bool quads_near(int64_t x_pixel) { return x_pixel >= 0 && x_pixel <= 16; }
RW_INLINE bool quads_possible(int64_t x_pixel) { return quads_near(x_pixel) || (x_pixel >= 21 && x_pixel <= 37); }

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

template <bool near>
RW_INLINE __m512i quad_load(const uint8_t* p, __m512i index) {
  const __m512i first = _mm512_loadu_si512(p);
  return near ? _mm512_permutexvar_epi8(index, first) : _mm512_permutex2var_epi8(first, index, _mm512_loadu_si512(p + 64));
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

template <EpilogueKind kind, typename A>
RW_INLINE void finish_quad(const Block& b, uint8_t* y, int64_t y_pixel, const A& a0, const A& a1, const A& a2, const A& a3) {
  const __m512i p = requant_pair(b.channels, a0, 0, a1, 1), q = requant_pair(b.channels, a2, 2, a3, 3);
  store_quad(b, y, y_pixel, requant_codes<kind>(*b.head, p, q));
}

#define RW_QUAD_POINTER(g) const uint8_t* const x##g = strip.x + g * 4 * strip.x_pixel;
#define RW_QUAD_LOAD(g) const __m512i lanes##g = quad_load<near>(x##g + at, index);
#define RW_QUAD_DOT(g, dword)                                                \
  {                                                                          \
    const __m512i four = _mm512_shuffle_epi32(lanes##g, static_cast<_MM_PERM_ENUM>(0x55 * dword)); \
    RW_VECTORS_4(RW_MAC, g)                                                  \
  }
#define RW_QUAD_DOT_0(g) RW_QUAD_DOT(g, 0)
#define RW_QUAD_DOT_1(g) RW_QUAD_DOT(g, 1)
#define RW_QUAD_DOT_2(g) RW_QUAD_DOT(g, 2)
#define RW_QUAD_DOT_3(g) RW_QUAD_DOT(g, 3)
#define RW_QUAD_STEP(groups, dword)                                                     \
  {                                                                                     \
    RW_VECTORS_4(RW_WEIGHT, 0) RW_PIXELS_##groups(RW_QUAD_DOT_##dword) w += 256;        \
  }
#define RW_QUAD_FINISH(g)                                                                                                 \
  finish_quad<kind>(b, y + g * 4 * strip.y_pixel, strip.y_pixel, RW_A(g, 0), RW_A(g, 1), RW_A(g, 2), RW_A(g, 3));

#define RW_QUAD_SPLIT(g) RW_SPLIT(g, a##g##_0, a##g##_0, 0, a##g##_1, 1, a##g##_2, 2, a##g##_3, 3)
#define RW_QUAD_LOOK_UP(g) store_quad(b, y + g * 4 * strip.y_pixel, strip.y_pixel, RW_CODES(g));

// Tiles of 4 * groups pixels, one behind the other, all in one row.
#define RW_QUADS(groups)                                                                                             \
  template <EpilogueKind kind, bool near>                                                                            \
  void quads_##groups(const Block& block, const QuadStrip& quad_strip) {                                             \
    const Block b = block; /* copies that stores through y cannot change */                                          \
    const QuadStrip strip = quad_strip;                                                                              \
    const __m512i index = quad_index(strip.x_pixel);                                                                 \
    const int32_t* const last = b.tap + b.taps;                                                                      \
    constexpr int kVectors = 4;                                                                                      \
    __m512i segments[kind == EpilogueKind::poly ? groups * kVectors : 1];                                            \
    PolyTables tables = {};                                                                                          \
    uint8_t* y = strip.y;                                                                                            \
    int64_t x_at = 0;                                                                                                \
    RW_PIXELS_##groups(RW_QUAD_POINTER)                                                                              \
    for (int64_t tile = strip.tiles; tile > 0; --tile) {                                                             \
      RW_PIXELS_##groups(RW_START_4) const int8_t* w = b.w;                                                          \
      for (const int32_t* tap = b.tap; tap != last; ++tap) {                                                         \
        int64_t left = b.depth;                                                                                      \
        for (int64_t at = *tap + x_at; left > 0; at += 16, left -= 16) {                                             \
          RW_PIXELS_##groups(RW_QUAD_LOAD) RW_QUAD_STEP(groups, 0)                                                   \
          if (left > 4) RW_QUAD_STEP(groups, 1)                                                                      \
          if (left > 8) RW_QUAD_STEP(groups, 2)                                                                      \
          if (left > 12) RW_QUAD_STEP(groups, 3)                                                                     \
        }                                                                                                            \
      }                                                                                                              \
      if (kind == EpilogueKind::poly) {                                                                              \
        RW_PIXELS_##groups(RW_LOCATE_4) tables = poly_tables(*b.head);                                               \
      }                                                                                                              \
      if constexpr (kind == EpilogueKind::fine) {                                                                    \
        RW_PIXELS_##groups(RW_HIGH) RW_PIXELS_##groups(RW_QUAD_SPLIT)                                                \
        const FineTables fine = fine_tables(b.head->table);                                                          \
        RW_PIXELS_##groups(RW_QUAD_LOOK_UP)                                                                          \
      } else {                                                                                                       \
        RW_PIXELS_##groups(RW_QUAD_FINISH)                                                                           \
      }                                                                                                              \
      x_at += 4 * groups * strip.x_pixel;                                                                            \
      y += 4 * groups * strip.y_pixel;                                                                               \
    }                                                                                                                \
  }

RW_QUADS(4)
RW_QUADS(2)

using QuadFn = void (*)(const Block&, const QuadStrip&);

// By groups (4, 2), pixels far apart or near, and epilogue kind. REAL takes the other tiles.
#define RW_QUAD_KINDS(name, near) \
  {name<EpilogueKind::linear, near>, name<EpilogueKind::table, near>, name<EpilogueKind::poly, near>, nullptr, name<EpilogueKind::fine, near>}
constexpr QuadFn kQuads4[2][5] = {RW_QUAD_KINDS(quads_4, false), RW_QUAD_KINDS(quads_4, true)};
constexpr QuadFn kQuads2[2][5] = {RW_QUAD_KINDS(quads_2, false), RW_QUAD_KINDS(quads_2, true)};
constexpr int kQuadLeast = 8;  // pixels of a row

// `pixels` pixels of a row, at least kQuadLeast.
RW_INLINE void run_quads(const Block& b, const uint8_t* x, int64_t x_pixel, uint8_t* y, int64_t y_pixel, int64_t pixels) {
  const int kind = b.head->kind, near = quads_near(x_pixel);
  const auto part = [&](QuadFn fn, int64_t from, int64_t tiles) {
    if (tiles > 0) fn(b, {x + from * x_pixel, y + from * y_pixel, x_pixel, y_pixel, tiles});
  };
  const int64_t large = pixels / 16, small = pixels % 16 / 8;
  part(kQuads4[near][kind], 0, large);
  part(kQuads2[near][kind], 16 * large, small);
  part(kQuads2[near][kind], pixels - 8, pixels % 8 > 0);  // overlaps the one before and writes the same again
}

}  // namespace
}  // namespace rw
