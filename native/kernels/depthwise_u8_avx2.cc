// Depthwise convolution on codes for AVX2: 16 channels of a pixel, two taps at a time.
//
// Bytes are widened to int16 first: maddubs saturates at 32767, madd of int16 is exact. Interleaving two taps works within
// lanes of 16 bytes, so the lower accumulator holds channels 0..3 and 8..11, the upper one 4..7 and 12..15; packs_epi32 puts
// them in order again.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "depthwise_u8.h"
#include "table_avx2.h"

#define RW_INLINE static inline __attribute__((always_inline))

namespace rw {
namespace {

constexpr int max_taps = 1024;  // of a kernel on this path: their offsets lie on the stack

bool too_many_taps(const DepthwiseShape& s) { return static_cast<int64_t>(s.kh) * s.kw > max_taps; }
int pairs_of(const DepthwiseShape& s) { return (s.kh * s.kw + 1) / 2; }

// Constants of 16 channels in accumulator order; weights [pairs][2][16] int16 follow.
struct alignas(32) Constants {
  int32_t bias[2][8];
  float scale[2][8];
  float out_scale[2][8];
  int16_t zero[16];
};

size_t block_bytes(const DepthwiseShape& s) { return sizeof(Constants) + static_cast<size_t>(pairs_of(s)) * 64; }

size_t packed_bytes(const DepthwiseShape& s) {
  if (too_many_taps(s)) return depthwise_u8_portable.packed_bytes(s);
  return sizeof(Head) + (s.c + 15) / 16 * block_bytes(s);
}

void pack(const DepthwiseShape& s, const ConvWeights& w, void* packed) {
  if (too_many_taps(s)) return depthwise_u8_portable.pack(s, w, packed);
  fill_head(w.e, packed);
  uint8_t* blocks = static_cast<uint8_t*>(packed) + sizeof(Head);
  const int8_t* canonical = static_cast<const int8_t*>(w.w);
  std::memset(blocks, 0, packed_bytes(s) - sizeof(Head));
  for (int c = 0; c < s.c; ++c) {
    Constants& k = *reinterpret_cast<Constants*>(blocks + c / 16 * block_bytes(s));
    int16_t* weights = reinterpret_cast<int16_t*>(&k + 1);
    const int lane = c % 16, half = lane / 4 % 2, i = lane / 8 * 4 + lane % 4;  // which accumulator, and where in it
    k.bias[half][i] = w.e.bias[c];
    if (w.e.scale) k.scale[half][i] = w.e.scale[c];
    if (w.e.kind == EpilogueKind::poly) k.out_scale[half][i] = w.e.out_scale[c];
    if (w.e.kind != EpilogueKind::real) k.zero[lane] = static_cast<int16_t>(w.e.zero[c]);
    for (int tap = 0; tap < s.kh * s.kw; ++tap) weights[tap / 2 * 32 + half * 16 + i * 2 + tap % 2] = canonical[static_cast<int64_t>(tap) * s.c + c];
  }
}

struct Acc {
  __m256i low, high;
};

RW_INLINE __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
RW_INLINE __m256i widened(const uint8_t* p) { return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
RW_INLINE __m256 scaled(__m256i acc, const float* scale) { return _mm256_mul_ps(_mm256_cvtepi32_ps(acc), _mm256_loadu_ps(scale)); }

RW_INLINE void multiply(Acc& a, const uint8_t* first, const uint8_t* second, const int16_t* w) {
  const __m256i x = widened(first), y = widened(second);
  a.low = _mm256_add_epi32(a.low, _mm256_madd_epi16(_mm256_unpacklo_epi16(x, y), load(w)));
  a.high = _mm256_add_epi32(a.high, _mm256_madd_epi16(_mm256_unpackhi_epi16(x, y), load(w + 16)));
}

// Saturating: within int16 after packs, so that adding the zero point and clamping gives the exact sum's result.
RW_INLINE __m256i sums(__m256i low, __m256i high, const Constants& k) { return _mm256_adds_epi16(_mm256_packs_epi32(low, high), load(k.zero)); }

RW_INLINE __m128i codes(__m256i low, __m256i high, const Constants& k) {
  const __m256i q = sums(low, high, k);
  return _mm_packus_epi16(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
}

// p[i] of 32 entries, i in 0..31: eight at a time by permutation, bits 3 and 4 choose among them. (Gathers are slow on many CPUs.)
RW_INLINE __m256 entries(const float* p, __m256i i, __m256 bit3, __m256 bit4) {
  const __m256 a = _mm256_permutevar8x32_ps(_mm256_loadu_ps(p), i), b = _mm256_permutevar8x32_ps(_mm256_loadu_ps(p + 8), i);
  const __m256 c = _mm256_permutevar8x32_ps(_mm256_loadu_ps(p + 16), i), d = _mm256_permutevar8x32_ps(_mm256_loadu_ps(p + 24), i);
  return _mm256_blendv_ps(_mm256_blendv_ps(a, b, bit3), _mm256_blendv_ps(c, d, bit3), bit4);
}

RW_INLINE __m256i poly(const Head& h, __m256 v, const float* out_scale) {
  __m256 t = _mm256_add_ps(v, _mm256_set1_ps(h.poly_b));
  t = _mm256_min_ps(_mm256_max_ps(t, _mm256_setzero_ps()), _mm256_set1_ps(31.0f));
  const __m256i i = _mm256_cvttps_epi32(t);
  const __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)), bit4 = _mm256_castsi256_ps(_mm256_slli_epi32(i, 27));  // as signs
  const __m256 c0 = entries(h.poly, i, bit3, bit4), c1 = entries(h.poly + 32, i, bit3, bit4), c2 = entries(h.poly + 64, i, bit3, bit4);
  const __m256 f = _mm256_add_ps(_mm256_mul_ps(_mm256_add_ps(_mm256_mul_ps(c2, v), c1), v), c0);
  return _mm256_cvtps_epi32(_mm256_mul_ps(f, _mm256_loadu_ps(out_scale)));
}

RW_INLINE void store(uint8_t* y, __m128i codes, int n) {
  if (n == 16) return _mm_storeu_si128(reinterpret_cast<__m128i*>(y), codes);
  alignas(16) uint8_t whole[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(whole), codes);
  std::memcpy(y, whole, static_cast<size_t>(n));
}

// Entries of a table of ten bits, one by one: no instruction of this path finds more at a time.
RW_INLINE void store_fine(const uint8_t* table, uint8_t* y, __m256i q, int n) {
  alignas(32) uint16_t at[16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(at), _mm256_min_epi16(_mm256_max_epi16(q, _mm256_setzero_si256()), _mm256_set1_epi16(kFineEntries - 1)));
  if (n == 16) {
    for (int c = 0; c < 16; ++c) y[c] = table[at[c]];
  } else {
    for (int c = 0; c < n; ++c) y[c] = table[at[c]];
  }
}

template <EpilogueKind kind>
RW_INLINE void finish(const Head& h, const Constants& k, const Acc& a, uint8_t* y, int n) {
  __m256 v = scaled(a.low, k.scale[0]), w = scaled(a.high, k.scale[1]);
  if (kind == EpilogueKind::poly) {
    store(y, codes(poly(h, v, k.out_scale[0]), poly(h, w, k.out_scale[1]), k), n);
  } else if (kind == EpilogueKind::real) {
    if (h.raw) v = _mm256_castsi256_ps(a.low), w = _mm256_castsi256_ps(a.high);
    alignas(32) float whole[16];
    float* out = n == 16 ? reinterpret_cast<float*>(y) : whole;
    _mm256_storeu_ps(out, _mm256_permute2f128_ps(v, w, 0x20));
    _mm256_storeu_ps(out + 8, _mm256_permute2f128_ps(v, w, 0x31));
    if (n != 16) std::memcpy(y, whole, static_cast<size_t>(n) * 4);
  } else if (kind == EpilogueKind::fine) {
    store_fine(h.table, y, sums(_mm256_cvtps_epi32(v), _mm256_cvtps_epi32(w), k), n);
  } else {
    const __m128i q = codes(_mm256_cvtps_epi32(v), _mm256_cvtps_epi32(w), k);
    if (kind == EpilogueKind::linear) {
      const __m128i lo = _mm_set1_epi8(static_cast<char>(h.lo)), hi = _mm_set1_epi8(static_cast<char>(h.hi));
      store(y, _mm_max_epu8(_mm_min_epu8(q, hi), lo), n);
    } else {
      store(y, q, n);  // channels() looks them up
    }
  }
}

// Of one row, the outputs of 16 channels (n of which exist). The number of pairs is a constant for 3x3.
struct Line {
  const uint8_t* x;
  int64_t x_step;
  uint8_t* y;
  int64_t y_step;
  int out_w, n, pairs;
  const int64_t* offset;
};

// The codes of a line through the table, two pixels at a time.
void look_up_line(const uint8_t* table, const Line& t) {
  uint8_t* y = t.y;
  if (t.n < 16) {
    for (int i = t.out_w; i > 0; --i, y += t.y_step)
      for (int c = 0; c < t.n; ++c) y[c] = table[y[c]];
    return;
  }
  const auto at = [](uint8_t* p) { return reinterpret_cast<__m128i*>(p); };
  for (int i = t.out_w; i > 0; i -= 2, y += 2 * t.y_step) {
    uint8_t* next = i > 1 ? y + t.y_step : y;
    const __m256i q = look_up(table, _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(at(y))), _mm_loadu_si128(at(next)), 1));
    _mm_storeu_si128(at(next), _mm256_extracti128_si256(q, 1));
    _mm_storeu_si128(at(y), _mm256_castsi256_si128(q));
  }
}

template <EpilogueKind kind, int fixed_pairs>
__attribute__((noinline)) void channels(const Head& h, const Constants& k, const Line& t) {
  const int16_t* weights = reinterpret_cast<const int16_t*>(&k + 1);
  const int pairs = fixed_pairs ? fixed_pairs : t.pairs;
  const int64_t x_step = t.x_step, y_step = t.y_step;
  int64_t offset[fixed_pairs ? fixed_pairs * 2 : 1];
  if (fixed_pairs) std::memcpy(offset, t.offset, sizeof offset);
  const int64_t* at = fixed_pairs ? offset : t.offset;
  const uint8_t* x = t.x;
  uint8_t* y = t.y;
  const int n = t.n;
  for (int i = t.out_w; i > 0; --i, x += x_step, y += y_step) {
    Acc a = {load(k.bias[0]), load(k.bias[1])};
    for (int p = 0; p < pairs; ++p) multiply(a, x + at[2 * p], x + at[2 * p + 1], weights + p * 32);
    finish<kind>(h, k, a, y, n);
  }
  if (kind == EpilogueKind::table) look_up_line(h.table, t);
}

template <EpilogueKind kind>
void run_kind(const DepthwiseShape& s, const DepthwiseRun& r, const int64_t* offset, int begin, int end) {
  const Head& h = *static_cast<const Head*>(r.packed);
  const uint8_t* blocks = static_cast<const uint8_t*>(r.packed) + sizeof(Head);
  const int element = kind == EpilogueKind::real ? 4 : 1;
  for (int row = begin; row < end; ++row)
    for (int c = 0; c < s.c; c += 16) {
      const Constants& k = *reinterpret_cast<const Constants*>(blocks + c / 16 * block_bytes(s));
      const Line t = {r.x + row * s.sh * r.x_row + c, s.sw * r.x_pixel,          static_cast<uint8_t*>(r.y) + row * r.y_row + c * element, r.y_pixel,
                      r.out_w,                        s.c - c < 16 ? s.c - c : 16, pairs_of(s),                                               offset};
      if (t.pairs == 5)
        channels<kind, 5>(h, k, t);
      else
        channels<kind, 0>(h, k, t);
    }
}

void run(const DepthwiseShape& s, const DepthwiseRun& r, int begin, int end) {
  if (too_many_taps(s)) return depthwise_u8_portable.run(s, r, begin, end);
  int64_t offset[max_taps + 2];
  for (int tap = 0; tap < pairs_of(s) * 2; ++tap)  // the tap beyond the last of an odd number has weight 0
    offset[tap] = tap < s.kh * s.kw ? tap / s.kw * s.dh * r.x_row + tap % s.kw * s.dw * r.x_pixel : 0;
  switch (static_cast<const Head*>(r.packed)->kind) {
    case EpilogueKind::linear: return run_kind<EpilogueKind::linear>(s, r, offset, begin, end);
    case EpilogueKind::table: return run_kind<EpilogueKind::table>(s, r, offset, begin, end);
    case EpilogueKind::poly: return run_kind<EpilogueKind::poly>(s, r, offset, begin, end);
    case EpilogueKind::fine: return run_kind<EpilogueKind::fine>(s, r, offset, begin, end);
    case EpilogueKind::real: break;
  }
  run_kind<EpilogueKind::real>(s, r, offset, begin, end);
  apply_unary(kernels(Isa::avx2).unary_f32, s, r, begin, end);
}

}  // namespace

const DepthwiseKernel depthwise_u8_avx2 = {packed_bytes, pack, run};

}  // namespace rw
