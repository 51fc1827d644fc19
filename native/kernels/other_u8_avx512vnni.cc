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

// Up to 256 channels of bytes: a pixel is the table, the index what is looked up in it. Blocks of 64 outputs go over all
// pixels of a row, so that the index is narrowed to bytes once.
void gather_channels(const Image& x, const Image& y, int element_bytes, const int32_t* index, int begin, int end) {
  if (element_bytes != 1 || x.c > 256) return gather_portable(x, y, element_bytes, index, begin, end);
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

// The codes of 64 floats.
RW_INLINE __m512i codes_of(const float* x, __m512 scale, __m512i zero) {
  const auto one = [&](const float* p) {
    const __m512 v = _mm512_div_ps(_mm512_loadu_ps(p), scale);
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

void quantize_image_row(const float* const* planes, int channels, uint8_t* y, int64_t y_pixel, int w, const float* scale, const int32_t* zero) {
  if (channels == 1 && y_pixel == 1) return quantize_run(planes[0], 1, y, 1, w, scale[0], zero[0]);
  int done = 0;
  if (channels == 3 && y_pixel == 3) {
    __m512 s[3];
    __m512i z[3];
    for (int c = 0; c < 3; ++c) s[c] = _mm512_set1_ps(scale[c]), z[c] = _mm512_set1_epi16(static_cast<int16_t>(zero[c]));
    for (; done + 64 <= w; done += 64) {
      const __m512i c0 = codes_of(planes[0] + done, s[0], z[0]), c1 = codes_of(planes[1] + done, s[1], z[1]);
      const __m512i c2 = codes_of(planes[2] + done, s[2], z[2]);
      for (int v = 0; v < 3; ++v) {
        const __m512i mixed = _mm512_permutex2var_epi8(c0, _mm512_load_si512(three_planes.two[v]), c1);
        const __m512i all = _mm512_mask_permutexvar_epi8(mixed, three_planes.is_third[v], _mm512_load_si512(three_planes.third[v]), c2);
        _mm512_storeu_si512(y + static_cast<int64_t>(done) * 3 + v * 64, all);
      }
    }
  }
  if (done == w) return;
  const Ints lo = ints(0), hi = ints(255);
  alignas(16) uint8_t codes[16];
  for (int c = 0; c < channels; ++c)
    for (int first = done; first < w; first += 16) {
      const int n = w - first < 16 ? w - first : 16;
      store_codes(codes, to_codes(load_floats(planes[c] + first, n) / floats(scale[c]), ints(zero[c]), lo, hi));
      for (int i = 0; i < n; ++i) y[(first + i) * y_pixel + c] = codes[i];
    }
}

}  // namespace

const PoolFn maxpool_u8_avx512vnni = maxpool_rows;
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
