// The fixed-point form for AVX-512: 16 accumulators to codes at a time.
//
// vpmuldq multiplies the even dwords of a vector to 64 bits; the odd ones are shifted down and multiplied by themselves. Behind
// the shift both results fit into 32 bits again and are put side by side, if every shift is at least kNarrow (|v * m| is below
// 2^62, and 2^53 behind a curve); where one is not (`wide`), they are clamped in 64 bits first.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "fixed_u8.h"

#define RW_INLINE static inline __attribute__((always_inline))

namespace rw {
namespace {

constexpr int kLanes = 16;
constexpr int kNarrow = 32, kNarrowBehindCurve = 24;

struct alignas(64) Head {
  FixedKind kind;
  int32_t n, lo, hi;
  bool wide;
  alignas(64) uint8_t table[256];
  alignas(64) int16_t curve[2][kCurveEntries - 1];  // the entries, and the one behind each
};

// Of 16 channels: even and odd ones apart, in 64 bits.
struct alignas(64) Multiplier {
  int64_t m[2][8], half[2][8], shift[2][8];
};

struct alignas(64) Constants {
  Multiplier first, second;
  int32_t zero[kLanes], zero2[kLanes];
};

size_t packed_bytes(int n) { return sizeof(Head) + static_cast<size_t>((n + kLanes - 1) / kLanes) * sizeof(Constants); }

void set(Multiplier& to, int lane, int32_t m, int32_t s) {
  to.m[lane % 2][lane / 2] = m;
  to.half[lane % 2][lane / 2] = int64_t{1} << (s - 1);
  to.shift[lane % 2][lane / 2] = s;
}

void pack(const FixedEpilogue& e, void* packed) {
  std::memset(packed, 0, packed_bytes(e.n));
  Head& head = *static_cast<Head*>(packed);
  head.kind = e.kind, head.n = e.n, head.lo = e.lo, head.hi = e.hi;
  if (e.kind == FixedKind::table) std::memcpy(head.table, e.table, 256);
  if (e.kind == FixedKind::curve)
    for (int i = 0; i < 2; ++i) std::memcpy(head.curve[i], e.curve + i, sizeof head.curve[i]);
  auto* constants = reinterpret_cast<Constants*>(&head + 1);
  for (int c = 0; c < e.n; ++c) {
    Constants& to = constants[c / kLanes];
    const int lane = c % kLanes;
    set(to.first, lane, e.m[c], e.s[c]);
    to.zero[lane] = e.zero[c];
    head.wide = head.wide || e.s[c] < kNarrow;
    if (e.kind != FixedKind::curve) continue;
    set(to.second, lane, e.m2[c], e.s2[c]);
    to.zero2[lane] = e.zero2[c];
    head.wide = head.wide || e.s2[c] < kNarrowBehindCurve;
  }
}

RW_INLINE __m512i load(const void* p) { return _mm512_load_si512(p); }

// A multiplier in registers.
struct Scaling {
  __m512i m[2], half[2], shift[2];
  explicit Scaling(const Multiplier& k)
      : m{load(k.m[0]), load(k.m[1])}, half{load(k.half[0]), load(k.half[1])}, shift{load(k.shift[0]), load(k.shift[1])} {}
};

template <bool wide>
RW_INLINE __m512i scaled(const Scaling& k, __m512i v) {
  __m512i even = _mm512_mul_epi32(v, k.m[0]), odd = _mm512_mul_epi32(_mm512_srli_epi64(v, 32), k.m[1]);
  even = _mm512_srav_epi64(_mm512_add_epi64(even, k.half[0]), k.shift[0]);
  odd = _mm512_srav_epi64(_mm512_add_epi64(odd, k.half[1]), k.shift[1]);
  if (wide) {
    const __m512i low = _mm512_set1_epi64(-(1 << 30)), high = _mm512_set1_epi64(1 << 30);
    even = _mm512_min_epi64(_mm512_max_epi64(even, low), high);
    odd = _mm512_min_epi64(_mm512_max_epi64(odd, low), high);
  }
  return _mm512_mask_shuffle_epi32(even, 0xaaaa, odd, _MM_PERM_CCAA);
}

RW_INLINE __m512i clamped(__m512i v, __m512i lo, __m512i hi) { return _mm512_min_epi32(_mm512_max_epi32(v, lo), hi); }

// Entry i of 512, i the upper nine bits of p (the sign turned): eight permutations find it among 64 each, by the lower six of them.
RW_INLINE __m512i entry(const int16_t* t, __m512i i, __mmask32 bit6, __mmask32 bit7, __mmask32 positive) {
  __m512i part[8];
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k) part[k] = _mm512_permutex2var_epi16(load(t + 64 * k), i, load(t + 64 * k + 32));
#pragma GCC unroll 4
  for (int k = 0; k < 8; k += 2) part[k] = _mm512_mask_blend_epi16(bit6, part[k], part[k + 1]);
  const __m512i low = _mm512_mask_blend_epi16(bit7, part[0], part[2]), high = _mm512_mask_blend_epi16(bit7, part[4], part[6]);
  return _mm512_mask_blend_epi16(positive, low, high);
}

struct Two {
  __m512i a, b;
};

// The interpolated table for two vectors, which become one of int16 (saturating, as the curve wants it) and two again: a pack and
// unpacks undo each other. T[i] * (128 - f) + T[i+1] * f is one product of pairs.
RW_INLINE Two on_curve(const Head& h, const Two& v) {
  const __m512i p = _mm512_packs_epi32(v.a, v.b), i = _mm512_srai_epi16(p, 7);
  const __mmask32 bit6 = _mm512_movepi16_mask(_mm512_slli_epi16(p, 2)), bit7 = _mm512_movepi16_mask(_mm512_slli_epi16(p, 1));
  const __mmask32 positive = ~_mm512_movepi16_mask(p);
  const __m512i here = entry(h.curve[0], i, bit6, bit7, positive), next = entry(h.curve[1], i, bit6, bit7, positive);
  const __m512i f = _mm512_and_si512(p, _mm512_set1_epi16(127)), rest = _mm512_sub_epi16(_mm512_set1_epi16(128), f);
  return {_mm512_madd_epi16(_mm512_unpacklo_epi16(here, next), _mm512_unpacklo_epi16(rest, f)),
          _mm512_madd_epi16(_mm512_unpackhi_epi16(here, next), _mm512_unpackhi_epi16(rest, f))};
}

RW_INLINE __m128i look_up(const Head& h, __m128i codes) {
  const __m512i i = _mm512_castsi128_si512(codes);
  const __m512i low = _mm512_permutex2var_epi8(load(h.table), i, load(h.table + 64));
  const __m512i high = _mm512_permutex2var_epi8(load(h.table + 128), i, load(h.table + 192));
  return _mm512_castsi512_si128(_mm512_mask_blend_epi8(_mm512_movepi8_mask(i), low, high));
}

RW_INLINE void store(uint8_t* y, __mmask16 mask, __m128i codes) {
  if (mask == 0xffff)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), codes);
  else
    _mm_mask_storeu_epi8(y, mask, codes);
}

// Two pixels at a time; a single last one is taken twice.
template <FixedKind kind, bool wide>
void run_kind(const Head& h, const int32_t* acc, uint8_t* y, int64_t y_pixel, int64_t pixels) {
  const auto* constants = reinterpret_cast<const Constants*>(&h + 1);
  const bool clamps = kind != FixedKind::table;
  const __m512i lo = _mm512_set1_epi32(clamps ? h.lo : 0), hi = _mm512_set1_epi32(clamps ? h.hi : 255);
  const int n = h.n;
  for (int c = 0; c < n; c += kLanes, ++constants) {
    const Scaling first(constants->first), second(constants->second);
    const __m512i zero = load(constants->zero), zero2 = load(constants->zero2);
    const auto mask = static_cast<__mmask16>(n - c < kLanes ? (1 << (n - c)) - 1 : 0xffff);
    const int32_t* from = acc + c;
    uint8_t* to = y + c;
    for (int64_t left = pixels; left > 0; left -= 2, from += 2 * n, to += 2 * y_pixel) {
      const bool both = left > 1;
      Two v = {_mm512_maskz_loadu_epi32(mask, from), _mm512_maskz_loadu_epi32(mask, both ? from + n : from)};
      v = {_mm512_add_epi32(scaled<wide>(first, v.a), zero), _mm512_add_epi32(scaled<wide>(first, v.b), zero)};
      if (kind == FixedKind::curve) {
        v = on_curve(h, v);
        v = {_mm512_add_epi32(scaled<wide>(second, v.a), zero2), _mm512_add_epi32(scaled<wide>(second, v.b), zero2)};
      }
      __m128i a = _mm512_cvtepi32_epi8(clamped(v.a, lo, hi)), b = _mm512_cvtepi32_epi8(clamped(v.b, lo, hi));
      if (kind == FixedKind::table) a = look_up(h, a), b = look_up(h, b);
      store(to, mask, a);
      store(both ? to + y_pixel : to, mask, b);
    }
  }
}

// 16 channels at a time, which plain loops would leave to a scalar rest.
void add(const Image& a, const Image& b, const Image& y, const AddFixedParams& p, int begin, int end) {
  const __m512i za = _mm512_set1_epi32(p.za), zb = _mm512_set1_epi32(p.zb), lo = _mm512_set1_epi32(p.lo), hi = _mm512_set1_epi32(p.hi);
  for (int c = 0; c < y.c; c += kLanes) {
    const auto mask = static_cast<__mmask16>(y.c - c < kLanes ? (1 << (y.c - c)) - 1 : 0xffff);
    const __m512i ma = _mm512_maskz_loadu_epi32(mask, p.a + c), mb = _mm512_maskz_loadu_epi32(mask, p.b + c);
    const __m512i zero = _mm512_maskz_loadu_epi32(mask, p.zero + c), shift = _mm512_maskz_loadu_epi32(mask, p.s + c);
    const __m512i half = _mm512_sllv_epi32(_mm512_set1_epi32(1), _mm512_sub_epi32(shift, _mm512_set1_epi32(1)));
    for (int r = begin; r < end; ++r)
      for (int x = 0; x < y.w; ++x) {
        const __m512i left = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, byte_at(a, r, x) + c));
        const __m512i right = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, byte_at(b, r, x) + c));
        const __m512i sum = _mm512_add_epi32(_mm512_mullo_epi32(_mm512_sub_epi32(left, za), ma), _mm512_mullo_epi32(_mm512_sub_epi32(right, zb), mb));
        const __m512i q = _mm512_add_epi32(_mm512_srav_epi32(_mm512_add_epi32(sum, half), shift), zero);
        store(byte_at(y, r, x) + c, mask, _mm512_cvtepi32_epi8(clamped(q, lo, hi)));
      }
  }
}

template <FixedKind kind>
void run_kind(const Head& h, const int32_t* acc, uint8_t* y, int64_t y_pixel, int64_t pixels) {
  h.wide ? run_kind<kind, true>(h, acc, y, y_pixel, pixels) : run_kind<kind, false>(h, acc, y, y_pixel, pixels);
}

void run(const void* packed, const int32_t* acc, uint8_t* y, int64_t y_pixel, int64_t pixels) {
  const Head& h = *static_cast<const Head*>(packed);
  switch (h.kind) {
    case FixedKind::clamp: return run_kind<FixedKind::clamp>(h, acc, y, y_pixel, pixels);
    case FixedKind::table: return run_kind<FixedKind::table>(h, acc, y, y_pixel, pixels);
    case FixedKind::curve: return run_kind<FixedKind::curve>(h, acc, y, y_pixel, pixels);
  }
}

}  // namespace

const FixedKernel fixed_avx512vnni = {packed_bytes, pack, run};
const AddFixedFn add_fixed_avx512vnni = add;
const MulFixedFn mul_fixed_avx512vnni = fixed_mul;
const PoolFixedFn avgpool_fixed_avx512vnni = fixed_avgpool;
const LinearFixedFn linear_fixed_avx512vnni = fixed_linear;

}  // namespace rw
