// The AVX-512 versions of tables, pools, resizing and moves.
#include "elementwise_u8_simd.h"
#include "pool_u8_simd.h"
#include "transpose_x86.h"

namespace rw {
namespace {

// 256 entries in four registers. The permutes look at 7 bits of an index; the eighth chooses between their results.
struct Table {
  __m512i t0, t1, t2, t3;
};

RW_INLINE Table load_table(const uint8_t* p) {
  return {_mm512_loadu_si512(p), _mm512_loadu_si512(p + 64), _mm512_loadu_si512(p + 128), _mm512_loadu_si512(p + 192)};
}

RW_INLINE Bytes look_up(const Table& t, Bytes i) {
  const __m512i low = _mm512_permutex2var_epi8(t.t0, i.v, t.t1), high = _mm512_permutex2var_epi8(t.t2, i.v, t.t3);
  return {_mm512_mask_blend_epi8(_mm512_movepi8_mask(i.v), low, high)};
}

void table_rows(const Image& x, const Image& y, const uint8_t* codes, int begin, int end) {
  const Table t = load_table(codes);
  const bool flat = side_by_side(x) && side_by_side(y);
  const int64_t run = flat ? static_cast<int64_t>(y.w) * y.c : y.c;
  for (int r = begin; r < end; ++r)
    for (int i = 0; i < (flat ? 1 : y.w); ++i) {
      const uint8_t* in = pixel_at(x, r, i);
      uint8_t* out = pixel_at(y, r, i);
      int64_t c = 0;
      for (; c + 64 <= run; c += 64) store_bytes(out + c, look_up(t, load_bytes(in + c)));
      if (c < run) {
        const int n = static_cast<int>(run - c);
        store_bytes(out + c, look_up(t, load_bytes(in + c, n)), n);
      }
    }
}

// Several neighbouring pixels of a result from a stretch of up to 128 bytes, in two registers. Their bytes lie one behind the
// other where they do in memory, else each pixel has a slot of 16, 32 or 64.
struct Stretch {
  int pixels;          // in a vector; 0: not even one fits
  int slot;            // bytes
  bool flat;
  __mmask64 low, high; // of the stretch
  __mmask64 store;     // of a vector, or of a slot
};

// span: bytes from the first to the last that `pixels` results read.
template <class Span>
Stretch stretch_of(const Image& y, const Span& span) {
  if (y.c > 64) return {};
  const bool flat = side_by_side(y);
  const int slot = flat ? y.c : y.c <= 16 ? 16 : y.c <= 32 ? 32 : 64;
  int pixels = 64 / slot;
  while (pixels > 0 && span(pixels) > 128) --pixels;
  if (pixels == 0) return {};
  const int bytes = static_cast<int>(span(pixels));
  return {pixels, slot, flat, first64(bytes), bytes > 64 ? first64(bytes - 64) : 0, first64(flat ? pixels * y.c : y.c)};
}

RW_INLINE void store_stretch(const Stretch& s, uint8_t* y, int64_t pixel, __m512i codes) {
  if (s.flat || s.slot == 64) return _mm512_mask_storeu_epi8(y, s.store, codes);
  const auto mask = static_cast<__mmask32>(s.store);
  if (s.slot == 32) {
    _mm256_mask_storeu_epi8(y, mask, _mm512_castsi512_si256(codes));
    if (s.pixels == 2) _mm256_mask_storeu_epi8(y + pixel, mask, _mm512_extracti64x4_epi64(codes, 1));
    return;
  }
  const auto narrow = static_cast<__mmask16>(s.store);
  _mm_mask_storeu_epi8(y, narrow, _mm512_castsi512_si128(codes));
  if (s.pixels > 1) _mm_mask_storeu_epi8(y + pixel, narrow, _mm512_extracti32x4_epi32(codes, 1));
  if (s.pixels > 2) _mm_mask_storeu_epi8(y + 2 * pixel, narrow, _mm512_extracti32x4_epi32(codes, 2));
  if (s.pixels > 3) _mm_mask_storeu_epi8(y + 3 * pixel, narrow, _mm512_extracti32x4_epi32(codes, 3));
}

RW_INLINE __m512i from_stretch(__m512i low, __m512i index, __m512i high) { return _mm512_permutex2var_epi8(low, index, high); }

// A gather of channels for several pixels at a time. Returns false where two would not fit.
bool gather_stretches(const Image& x, const Image& y, const int32_t* index, int begin, int end) {
  if (x.pixel < x.c || x.pixel > 128) return false;
  const Stretch s = stretch_of(y, [&](int pixels) { return (pixels - 1) * x.pixel + x.c; });
  if (s.pixels < 2) return false;
  uint8_t from[64] = {};
  for (int i = 0; i < s.pixels; ++i)
    for (int c = 0; c < y.c; ++c) from[i * s.slot + c] = static_cast<uint8_t>(i * x.pixel + index[c]);
  const __m512i indices = _mm512_loadu_si512(from);
  for (int r = begin; r < end; ++r)
    for (int i = 0; i < y.w; i += s.pixels) {
      if (i + s.pixels > y.w) {
        if (y.w < s.pixels) return false;
        i = y.w - s.pixels;   // once more what is written already
      }
      const uint8_t* in = pixel_at(x, r, i);
      const __m512i low = _mm512_maskz_loadu_epi8(s.low, in), high = _mm512_maskz_loadu_epi8(s.high, in + 64);
      store_stretch(s, pixel_at(y, r, i), y.pixel, from_stretch(low, indices, high));
    }
  return true;
}

// Up to 256 channels of bytes: a pixel is the table, the index what is looked up in it. Blocks of 64 outputs go over all
// pixels of a row, so that the index is narrowed to bytes once.
void gather_channels(const Image& x, const Image& y, int element_bytes, const int32_t* index, int begin, int end) {
  if (element_bytes != 1 || x.c > 256) return gather_portable(x, y, element_bytes, index, begin, end);
  if (gather_stretches(x, y, index, begin, end)) return;
  __mmask64 parts[4];
  for (int k = 0; k < 4; ++k) parts[k] = x.c > k * 64 ? first64(x.c - k * 64) : 0;
  for (int first = 0; first < y.c; first += 64) {
    const int n = y.c - first < 64 ? y.c - first : 64;
    uint8_t narrow[64] = {};
    for (int i = 0; i < n; ++i) narrow[i] = static_cast<uint8_t>(index[first + i]);
    const Bytes indices = load_bytes(narrow);
    for (int r = begin; r < end; ++r)
      for (int i = 0; i < y.w; ++i) {
        const uint8_t* in = pixel_at(x, r, i);
        Table t = {_mm512_maskz_loadu_epi8(parts[0], in), _mm512_maskz_loadu_epi8(parts[1], in + 64), _mm512_setzero_si512(), _mm512_setzero_si512()};
        if (x.c > 128) t.t2 = _mm512_maskz_loadu_epi8(parts[2], in + 128), t.t3 = _mm512_maskz_loadu_epi8(parts[3], in + 192);
        store_bytes(pixel_at(y, r, i) + first, look_up(t, indices), n);
      }
  }
}

struct Wide {
  __m512i v;
  static Wide load(const uint8_t* p, uint64_t mask) { return {_mm512_maskz_loadu_epi8(mask, p)}; }
  void store(uint8_t* p, uint64_t mask) const { _mm512_mask_storeu_epi8(p, mask, v); }
  friend Wide larger(Wide a, Wide b) { return {_mm512_max_epu8(a.v, b.v)}; }
};
struct Narrow {
  __m256i v;
  static Narrow load(const uint8_t* p, uint64_t mask) { return {_mm256_maskz_loadu_epi8(static_cast<__mmask32>(mask), p)}; }
  void store(uint8_t* p, uint64_t mask) const { _mm256_mask_storeu_epi8(p, static_cast<__mmask32>(mask), v); }
  friend Narrow larger(Narrow a, Narrow b) { return {_mm256_max_epu8(a.v, b.v)}; }
};

// 3x3 with stride 2, n channels from `first`: a window's last column is the first of the next. Rows outside the image are
// replaced by one that is inside, columns by zeros: neither changes a maximum.
template <class T>
void maxpool_3x3s2(const Image& x, const Image& y, const PoolParams& p, int begin, int end, int first, int n) {
  const uint64_t mask = first64(n);
  const int64_t x_pixel = x.pixel, y_pixel = y.pixel;
  for (int r = begin; r < end; ++r) {
    const Range rows = inside(r * 2 - p.pad_top, 3, x.h);
    const uint8_t* const r0 = pixel_at(x, rows.begin, 0) + first;
    const uint8_t* const r1 = rows.end - rows.begin > 1 ? r0 + x.row : r0;
    const uint8_t* const r2 = rows.end - rows.begin > 2 ? r1 + x.row : r1;
    const auto column = [&](int64_t i) {
      if (i < 0 || i >= x.w) return T::load(r0, 0);
      const int64_t at = i * x_pixel;
      return larger(larger(T::load(r0 + at, mask), T::load(r1 + at, mask)), T::load(r2 + at, mask));
    };
    uint8_t* to = pixel_at(y, r, 0) + first;
    T last = column(-p.pad_left);
    for (int i = 0; i < y.w; ++i, to += y_pixel) {
      const int64_t at = 2 * i - p.pad_left;
      const T middle = larger(last, column(at + 1));
      last = column(at + 2);
      larger(middle, last).store(to, mask);
    }
  }
}

void maxpool_any(const Image& x, const Image& y, const PoolParams& p, int begin, int end) {
  if (p.kh != 3 || p.kw != 3 || p.sh != 2 || p.sw != 2) return maxpool_rows(x, y, p, begin, end);
  for (int first = 0; first < y.c; first += 64) {
    const int n = y.c - first < 64 ? y.c - first : 64;
    if (n <= 32)
      maxpool_3x3s2<Narrow>(x, y, p, begin, end, first, n);
    else
      maxpool_3x3s2<Wide>(x, y, p, begin, end, first, n);
  }
}

// Whether dividing by a scale is multiplying by its reciprocal, to the last bit: powers of two, as those of raw pixels.
inline bool exact_reciprocal(float scale) {
  uint32_t bits;
  std::memcpy(&bits, &scale, 4);
  const uint32_t exponent = bits >> 23;  // positive, as scales are
  return (bits & 0x7fffff) == 0 && exponent > 1 && exponent < 253;
}

// The codes of 64 floats. times: `scale` holds the reciprocal.
template <bool times>
RW_INLINE __m512i codes_of(const float* x, __m512 scale, __m512i zero) {
  const auto one = [&](const float* p) {
    const __m512 v = times ? _mm512_mul_ps(_mm512_loadu_ps(p), scale) : _mm512_div_ps(_mm512_loadu_ps(p), scale);
    return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-32768.0f)), _mm512_set1_ps(32767.0f)));
  };
  const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(one(x), one(x + 16)), zero);
  const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(one(x + 32), one(x + 48)), zero);
  // Packing within lanes leaves the dwords of the four sources interleaved.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
}

struct alignas(64) Interleave {
  uint8_t two[3][64], third[3][64];  // byte 64 * v + i of the output: from planes 0 and 1, or from plane 2
  __mmask64 is_third[3];
};

constexpr Interleave interleave_three() {
  Interleave t = {};
  for (int v = 0; v < 3; ++v)
    for (int i = 0; i < 64; ++i) {
      const int pixel = (64 * v + i) / 3, plane = (64 * v + i) % 3;
      t.two[v][i] = static_cast<uint8_t>(plane == 1 ? 64 + pixel : pixel);
      t.third[v][i] = static_cast<uint8_t>(pixel);
      if (plane == 2) t.is_third[v] |= __mmask64{1} << i;
    }
  return t;
}

constexpr Interleave three_planes = interleave_three();

// Three planes to dense pixels, 64 at a time; the last 64 overlap those before them.
template <bool times>
void quantize_three(const float* const* planes, uint8_t* y, int w, const float* scale, const int32_t* zero) {
  __m512 s[3];
  __m512i z[3];
  for (int c = 0; c < 3; ++c) s[c] = _mm512_set1_ps(times ? 1.0f / scale[c] : scale[c]), z[c] = _mm512_set1_epi16(static_cast<int16_t>(zero[c]));
  for (int done = 0; done < w; done += 64) {
    const int at = done + 64 <= w ? done : w - 64;
    const __m512i c0 = codes_of<times>(planes[0] + at, s[0], z[0]), c1 = codes_of<times>(planes[1] + at, s[1], z[1]);
    const __m512i c2 = codes_of<times>(planes[2] + at, s[2], z[2]);
    for (int v = 0; v < 3; ++v) {
      const __m512i mixed = _mm512_permutex2var_epi8(c0, _mm512_load_si512(three_planes.two[v]), c1);
      const __m512i all = _mm512_mask_permutexvar_epi8(mixed, three_planes.is_third[v], _mm512_load_si512(three_planes.third[v]), c2);
      _mm512_storeu_si512(y + static_cast<int64_t>(at) * 3 + v * 64, all);
    }
  }
}

void quantize_image_row(const float* const* planes, int channels, uint8_t* y, int64_t y_pixel, int w, const float* scale, const int32_t* zero) {
  if (channels == 1 && y_pixel == 1) return quantize_run(planes[0], 1, y, 1, w, scale[0], zero[0]);
  if (channels == 3 && y_pixel == 3 && w >= 64) {
    const bool times = exact_reciprocal(scale[0]) && exact_reciprocal(scale[1]) && exact_reciprocal(scale[2]);
    times ? quantize_three<true>(planes, y, w, scale, zero) : quantize_three<false>(planes, y, w, scale, zero);
    return;
  }
  const Ints lo = ints(0), hi = ints(255);
  alignas(16) uint8_t codes[16];
  for (int c = 0; c < channels; ++c)
    for (int first = 0; first < w; first += 16) {
      const int n = w - first < 16 ? w - first : 16;
      store_codes(codes, to_codes(load_floats(planes[c] + first, n) / floats(scale[c]), ints(zero[c]), lo, hi));
      for (int i = 0; i < n; ++i) y[(first + i) * y_pixel + c] = codes[i];
    }
}

}  // namespace

const PoolFn maxpool_u8_avx512vnni = maxpool_any;
const PoolFn avgpool_u8_avx512vnni = avgpool_rows;
const NearestFn nearest_avx512vnni = nearest_pixels;
const LinearFn linear_u8_avx512vnni = linear_pixels;
const TableFn table_u8_avx512vnni = table_rows;
const GatherFn gather_avx512vnni = gather_channels;
const QuantizeFn quantize_avx512vnni = quantize_run;
const QuantizeRowFn quantize_row_avx512vnni = quantize_each;
const QuantizePlanesFn quantize_planes_avx512vnni = quantize_image_row;
const DequantizeFn dequantize_avx512vnni = dequantize_run;
const DequantizeRowFn dequantize_row_avx512vnni = dequantize_each;
const TransposeFn transpose_avx512vnni = transpose_blocks;

}  // namespace rw
