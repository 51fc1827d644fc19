// The AVX2 versions of elementwise kernels, pools, resizing and moves; gathering stays scalar.
#include "elementwise_u8_simd.h"
#include "pool_u8_simd.h"
#include "table_avx2.h"
#include "transpose_x86.h"

namespace rw {
namespace {

void add_rows(const Image& a, const Image& b, const Image& y, const AddParams& p, int begin, int end) {
  const Ints za = ints(p.za), zb = ints(p.zb), lo = ints(p.lo), hi = ints(p.hi);
  for (int r = begin; r < end; ++r)
    for (int x = 0; x < y.w; ++x) {
      const uint8_t *pa = pixel_at(a, r, x), *pb = pixel_at(b, r, x);
      uint8_t* py = pixel_at(y, r, x);
      by_sixteen(y.c, [&](int64_t c, auto... n) {
        const Floats left = to_floats(load_codes(pa + c, n...) - za) * load_floats(p.ma + c, n...);
        const Floats right = to_floats(load_codes(pb + c, n...) - zb) * load_floats(p.mb + c, n...);
        store_codes(py + c, to_codes(left + right, load_ints(p.zero + c, n...), lo, hi), n...);
      });
    }
}

void mul_rows(const Image& a, const Image& b, const Image& y, const MulParams& p, int begin, int end) {
  const Ints za = ints(p.za), zb = ints(p.zb), zy = ints(p.zy), lo = ints(p.lo), hi = ints(p.hi);
  const Floats m = floats(p.m);
  const bool flat = side_by_side(a) && side_by_side(b) && side_by_side(y) && a.c == y.c && b.c == y.c;
  const int64_t run = flat ? static_cast<int64_t>(y.w) * y.c : y.c;
  for (int r = begin; r < end; ++r)
    for (int x = 0; x < (flat ? 1 : y.w); ++x) {
      const uint8_t *pa = pixel_at(a, r, x), *pb = pixel_at(b, r, x);
      uint8_t* py = pixel_at(y, r, x);
      by_sixteen(run, [&](int64_t c, auto... n) {
        // Products stay below 2^24, so those of floats are exact.
        const Floats product = to_floats(load_codes(pa + c, n...) - za) * to_floats(load_codes(pb + c, n...) - zb);
        store_codes(py + c, to_codes(product * m, zy, lo, hi), n...);
      });
    }
}

void table_rows(const Image& x, const Image& y, const uint8_t* codes, int begin, int end) {
  const bool flat = side_by_side(x) && side_by_side(y);
  const int64_t run = flat ? static_cast<int64_t>(y.w) * y.c : y.c;
  for (int r = begin; r < end; ++r)
    for (int i = 0; i < (flat ? 1 : y.w); ++i) {
      const uint8_t* in = pixel_at(x, r, i);
      uint8_t* out = pixel_at(y, r, i);
      int64_t c = 0;
      for (; c + 32 <= run; c += 32) store_bytes(out + c, {look_up(codes, load_bytes(in + c).v)});
      for (; c < run; ++c) out[c] = codes[in[c]];
    }
}

// 16 pixels of one plane at a time, spread out by bytes: the divisions are what costs here.
void quantize_image_row(const float* const* planes, int channels, uint8_t* y, int64_t y_pixel, int w, const float* scale, const int32_t* zero) {
  if (channels == 1 && y_pixel == 1) return quantize_run(planes[0], 1, y, 1, w, scale[0], zero[0]);
  const Ints lo = ints(0), hi = ints(255);
  alignas(16) uint8_t codes[16];
  for (int c = 0; c < channels; ++c)
    for (int first = 0; first < w; first += 16) {
      const int n = w - first < 16 ? w - first : 16;
      const Floats x = n == 16 ? load_floats(planes[c] + first) : load_floats(planes[c] + first, n);
      store_codes(codes, to_codes(x / floats(scale[c]), ints(zero[c]), lo, hi));
      uint8_t* out = y + first * y_pixel + c;
      for (int i = 0; i < n; ++i) out[i * y_pixel] = codes[i];
    }
}

}  // namespace

const AddFn add_u8_avx2 = add_rows;
const MulFn mul_u8_avx2 = mul_rows;
const TableFn table_u8_avx2 = table_rows;
const PoolFn maxpool_u8_avx2 = maxpool_rows;
const PoolFn avgpool_u8_avx2 = avgpool_rows;
const NearestFn nearest_avx2 = nearest_pixels;
const LinearFn linear_u8_avx2 = linear_pixels;
const QuantizeFn quantize_avx2 = quantize_run;
const QuantizeRowFn quantize_row_avx2 = quantize_each;
const QuantizePlanesFn quantize_planes_avx2 = quantize_image_row;
const DequantizeFn dequantize_avx2 = dequantize_run;
const DequantizeRowFn dequantize_row_avx2 = dequantize_each;
const TransposeFn transpose_avx2 = transpose_blocks;

}  // namespace rw
