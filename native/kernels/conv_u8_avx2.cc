// conv_u8 for AVX2: four pixels by 16 output channels.
//
// vpmaddubsw saturates at 32767, which two products of u8 and s8 exceed. So both are widened to 16 bits, where vpmaddwd is exact:
// four activations, broadcast as one dword, split into the even ones (a mask) and the odd ones (a shift), and weights are stored
// as s16 in the matching order
//
//     [block][tap][k / 4][even, odd][vector of 8 channels][channel][2]
//
// The order of channels is chosen so that the packs of the epilogue end in the natural one: in 128-bit lane L, a pack puts
// channel 4 L + i of vector j at place 8 L + 4 j + i.
#include <cstring>

#include "float_math.h"
#include "kernels.h"

namespace rw {
namespace {

constexpr int kChannels = 16;  // of a block
constexpr int kPixels = 4;     // of a tile

struct alignas(32) Head {
  float poly[96];
  uint8_t table[kFineEntries];
  int32_t kind, lo, hi, unary, raw;  // raw: accumulators as they are
  float unary_a, unary_b, poly_b;
};

// Followed by the weights of the block.
struct alignas(32) Constants {
  int32_t bias[kChannels];
  float scale[kChannels], out_scale[kChannels];
  int32_t zero[kChannels];
};

int steps(const ConvShape& s) { return (s.k + 3) / 4; }
size_t weight_bytes(const ConvShape& s) { return static_cast<size_t>(s.taps) * steps(s) * 128; }
size_t block_bytes(const ConvShape& s) { return sizeof(Constants) + weight_bytes(s); }
int blocks(const ConvShape& s) { return (s.n + kChannels - 1) / kChannels; }

size_t packed_bytes(const ConvShape& s) { return sizeof(Head) + blocks(s) * block_bytes(s); }

void pack(const ConvShape& s, const ConvWeights& c, void* packed) {
  memset(packed, 0, packed_bytes(s));
  const Epilogue& e = c.e;
  Head& head = *static_cast<Head*>(packed);
  head.kind = static_cast<int>(e.kind);
  head.lo = e.lo, head.hi = e.hi, head.unary = e.unary;
  head.unary_a = e.unary_a, head.unary_b = e.unary_b, head.poly_b = e.poly_b;
  head.raw = e.scale == nullptr;
  if (e.kind == EpilogueKind::poly) memcpy(head.poly, e.poly, sizeof head.poly);
  if (e.kind == EpilogueKind::table) memcpy(head.table, e.table, 256);
  if (e.kind == EpilogueKind::fine) memcpy(head.table, e.table, kFineEntries);
  const auto* w = static_cast<const int8_t*>(c.w);
  for (int n = 0; n < s.n; ++n) {
    uint8_t* block = static_cast<uint8_t*>(packed) + sizeof(Head) + n / kChannels * block_bytes(s);
    auto& to = *reinterpret_cast<Constants*>(block);
    auto* weights = reinterpret_cast<int16_t*>(block + sizeof(Constants));
    const int p = n % kChannels;
    const int at = s.out_float ? p : p % 8 / 4 * 8 + p / 8 * 4 + p % 4;  // vector * 8 + lane
    to.bias[at] = e.bias[n];
    if (e.scale) to.scale[at] = e.scale[n];
    if (e.kind != EpilogueKind::real) to.zero[at] = e.zero[n];
    if (e.kind == EpilogueKind::poly) to.out_scale[at] = e.out_scale[n];
    for (int t = 0; t < s.taps; ++t)
      for (int k = 0; k < s.k; ++k)
        weights[(static_cast<size_t>(t) * steps(s) + k / 4) * 64 + k % 2 * 32 + at * 2 + k % 4 / 2] =
            w[(static_cast<size_t>(n) * s.taps + t) * s.k + k];
  }
}

// table[i] for i below 32, from registers of eight: about twice as fast as gathers.
RW_INLINE __m256 lookup_32(const float* table, __m256i i) {
  const __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)), bit4 = _mm256_castsi256_ps(_mm256_slli_epi32(i, 27));
  const __m256 t0 = _mm256_permutevar8x32_ps(_mm256_load_ps(table), i);
  const __m256 t1 = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), i);
  const __m256 t2 = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 16), i);
  const __m256 t3 = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 24), i);
  return _mm256_blendv_ps(_mm256_blendv_ps(t0, t1, bit3), _mm256_blendv_ps(t2, t3, bit3), bit4);
}

// table[code] for 32 codes: each of 16 rows of the table adds those of its codes; the others have the top bit set by a
// saturating addition, for which vpshufb gives zero.
RW_INLINE __m256i lookup_256(const uint8_t* table, __m256i codes) {
  __m256i sum = _mm256_setzero_si256();
  for (int row = 0; row < 16; ++row) {
    const __m256i t = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table) + row));
    const __m256i place = _mm256_sub_epi8(codes, _mm256_set1_epi8(static_cast<char>(16 * row)));
    sum = _mm256_or_si256(sum, _mm256_shuffle_epi8(t, _mm256_adds_epu8(place, _mm256_set1_epi8(0x70))));
  }
  return sum;
}

RW_INLINE __m256 poly_value(const Head& h, __m256 v) {
  __m256 t = _mm256_add_ps(v, _mm256_set1_ps(h.poly_b));
  t = _mm256_min_ps(_mm256_max_ps(t, _mm256_setzero_ps()), _mm256_set1_ps(31.0f));
  const __m256i i = _mm256_cvttps_epi32(t);
  __m256 f = _mm256_mul_ps(lookup_32(h.poly + 64, i), v);
  f = _mm256_mul_ps(_mm256_add_ps(f, lookup_32(h.poly + 32, i)), v);
  return _mm256_add_ps(f, lookup_32(h.poly, i));
}

template <EpilogueKind kind>
RW_INLINE __m256i rounded(const Head& h, const Constants& c, __m256i acc, int j) {
  __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(acc), _mm256_load_ps(c.scale + 8 * j));
  if (kind == EpilogueKind::poly) v = _mm256_mul_ps(poly_value(h, v), _mm256_load_ps(c.out_scale + 8 * j));
  const auto* zero = reinterpret_cast<const __m256i*>(c.zero + 8 * j);
  return _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_load_si256(zero));
}

struct Target {
  uint8_t* y[kPixels];
  int valid;  // channels of the block that exist
};

RW_INLINE void store_codes(uint8_t* y, __m128i codes, int valid) {
  if (valid == kChannels) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), codes);
  } else {
    alignas(16) uint8_t some[kChannels];
    _mm_store_si128(reinterpret_cast<__m128i*>(some), codes);
    memcpy(y, some, valid);
  }
}

RW_INLINE void store_real(const Head& h, const Constants& c, uint8_t* y, __m256i a0, __m256i a1, int valid) {
  alignas(32) float some[kChannels];
  const bool direct = valid == kChannels && h.unary == kNone;
  float* to = direct ? reinterpret_cast<float*>(y) : some;
  if (h.raw) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a0);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8), a1);
  } else {
    _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_cvtepi32_ps(a0), _mm256_load_ps(c.scale)));
    _mm256_storeu_ps(to + 8, _mm256_mul_ps(_mm256_cvtepi32_ps(a1), _mm256_load_ps(c.scale + 8)));
  }
  if (direct) return;
  if (h.unary != kNone) apply_unary(some, some, valid, h.unary, h.unary_a, h.unary_b);
  memcpy(y, some, 4 * valid);
}

// 16 entries of a table of ten bits, one by one: no instruction of this path finds more at a time.
RW_INLINE void store_fine(const uint8_t* table, uint8_t* y, __m256i sums, int valid) {
  alignas(32) uint16_t at[kChannels];
  const __m256i clamped = _mm256_min_epi16(_mm256_max_epi16(sums, _mm256_setzero_si256()), _mm256_set1_epi16(kFineEntries - 1));
  _mm256_store_si256(reinterpret_cast<__m256i*>(at), clamped);
  if (valid == kChannels) {
    for (int c = 0; c < kChannels; ++c) y[c] = table[at[c]];
  } else {
    for (int c = 0; c < valid; ++c) y[c] = table[at[c]];
  }
}

// Two pixels through the epilogue.
template <EpilogueKind kind>
RW_INLINE void finish(const Head& h, const Constants& c, int valid, uint8_t* ya, __m256i a0, __m256i a1, uint8_t* yb, __m256i b0,
                      __m256i b1) {
  if (kind == EpilogueKind::real) {
    store_real(h, c, ya, a0, a1, valid);
    store_real(h, c, yb, b0, b1, valid);
    return;
  }
  const __m256i a = _mm256_packs_epi32(rounded<kind>(h, c, a0, 0), rounded<kind>(h, c, a1, 1));
  const __m256i b = _mm256_packs_epi32(rounded<kind>(h, c, b0, 0), rounded<kind>(h, c, b1, 1));
  if (kind == EpilogueKind::fine) {
    store_fine(h.table, ya, a, valid);
    store_fine(h.table, yb, b, valid);
    return;
  }
  __m256i codes = _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8);
  if (kind == EpilogueKind::linear)
    codes = _mm256_min_epu8(_mm256_max_epu8(codes, _mm256_set1_epi8(static_cast<char>(h.lo))),
                            _mm256_set1_epi8(static_cast<char>(h.hi)));
  if (kind == EpilogueKind::table) codes = lookup_256(h.table, codes);
  store_codes(ya, _mm256_castsi256_si128(codes), valid);
  store_codes(yb, _mm256_extracti128_si256(codes, 1), valid);
}

RW_INLINE __m256i four(const uint8_t* p) {
  int32_t v;
  memcpy(&v, p, 4);
  return _mm256_set1_epi32(v);
}

// acc += even activations * even weights + odd * odd
RW_INLINE __m256i dot(__m256i acc, __m256i even, __m256i odd, __m256i we, __m256i wo) {
  return _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_madd_epi16(even, we), _mm256_madd_epi16(odd, wo)));
}

// The accumulators have names of their own: gcc keeps an array of them in memory.
#define RW_STEP(m)                                              \
  {                                                             \
    const __m256i x = four(x##m + at);                          \
    const __m256i even = _mm256_and_si256(x, low), odd = _mm256_srli_epi16(x, 8); \
    a##m##0 = dot(a##m##0, even, odd, we0, wo0);                \
    a##m##1 = dot(a##m##1, even, odd, we1, wo1);                \
  }

template <EpilogueKind kind>
void tile(const ConvShape& s, const int32_t* taps, const Head& h, const Constants& c, const uint8_t* const* x, const Target& to) {
  const auto* w = reinterpret_cast<const __m256i*>(&c + 1);
  const uint8_t *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
  const __m256i low = _mm256_set1_epi16(255);
  const __m256i bias0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(c.bias));
  const __m256i bias1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(c.bias) + 1);
  __m256i a00 = bias0, a10 = bias0, a20 = bias0, a30 = bias0;
  __m256i a01 = bias1, a11 = bias1, a21 = bias1, a31 = bias1;
  for (int t = 0; t < s.taps; ++t) {
    const int64_t end = taps[t] + s.k;
    for (int64_t at = taps[t]; at < end; at += 4, w += 4) {
      const __m256i we0 = _mm256_load_si256(w), we1 = _mm256_load_si256(w + 1);
      const __m256i wo0 = _mm256_load_si256(w + 2), wo1 = _mm256_load_si256(w + 3);
      RW_STEP(0) RW_STEP(1) RW_STEP(2) RW_STEP(3)
    }
  }
  finish<kind>(h, c, to.valid, to.y[0], a00, a01, to.y[1], a10, a11);
  finish<kind>(h, c, to.valid, to.y[2], a20, a21, to.y[3], a30, a31);
}

using TileFn = void (*)(const ConvShape&, const int32_t*, const Head&, const Constants&, const uint8_t* const*, const Target&);
constexpr TileFn kTile[] = {tile<EpilogueKind::linear>, tile<EpilogueKind::table>, tile<EpilogueKind::poly>,
                            tile<EpilogueKind::real>,   tile<EpilogueKind::fine>};

void run(const ConvShape& s, const ConvRun& r, int64_t pixel_begin, int64_t pixel_end) {
  const auto& head = *static_cast<const Head*>(r.packed);
  for (int block = 0; block < blocks(s); ++block) {
    const auto* at = static_cast<const uint8_t*>(r.packed) + sizeof(Head) + block * block_bytes(s);
    const auto& constants = *reinterpret_cast<const Constants*>(at);
    const int left = s.n - block * kChannels;
    Target to;
    to.valid = left < kChannels ? left : kChannels;
    uint8_t* y = static_cast<uint8_t*>(r.y) + static_cast<int64_t>(block) * kChannels * (s.out_float ? 4 : 1);
    int64_t row = pixel_begin / r.out_w, column = pixel_begin % r.out_w;
    for (int64_t m = pixel_begin; m < pixel_end; m += kPixels) {
      const uint8_t* x[kPixels];
      for (int i = 0; i < kPixels; ++i) {  // behind the end, the last pixel stands for those that are missing
        x[i] = r.x + row * r.x_row + column * r.x_pixel;
        to.y[i] = y + row * r.y_row + column * r.y_pixel;
        if (m + i + 1 < pixel_end && ++column == r.out_w) column = 0, ++row;
      }
      kTile[head.kind](s, r.tap, head, constants, x, to);
    }
  }
}

}  // namespace

const ConvKernel conv_u8_avx2 = {packed_bytes, pack, run, kPixels};

}  // namespace rw
