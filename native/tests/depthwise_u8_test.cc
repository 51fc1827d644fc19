// Every path of depthwise_u8 against plain loops written from docs/engine.md, byte by byte.
//
// The input ends 64 bytes in front of a forbidden page (kernels may read that far), the output directly in front of one. The
// whole output buffer is compared: border pixels, gaps between pixels and rows outside of the range must stay as they were.
//
// Usage: depthwise_u8_test [cases] [seed]
#include <cmath>
#include <cstring>

#include "u8_paths.h"

namespace {

using namespace rw_test;
using rw::EpilogueKind;

struct Case {
  rw::DepthwiseShape shape;
  EpilogueKind kind;
  int out_h, out_w, begin, end;
  int64_t x_row, x_pixel, y_row, y_pixel;
  std::vector<int8_t> w;
  std::vector<int32_t> bias, zero;
  std::vector<float> scale, out_scale, poly;
  std::vector<uint8_t> table;
  float poly_b;
  bool raw = false;  // accumulators as they are, for the fixed-point form
  int lo, hi, unary;
  float unary_a, unary_b;
};

void draw_constants(Case& c) {
  const int taps = c.shape.kh * c.shape.kw;
  const float spread = std::sqrt(static_cast<float>(taps)) * 9000.0f;
  const bool extreme = draw(0, 7) == 0;
  for (int i = 0; i < taps * c.shape.c; ++i) c.w.push_back(static_cast<int8_t>(extreme ? (draw(0, 1) ? 127 : -127) : draw(-127, 127)));
  const bool fine = c.kind == EpilogueKind::fine;
  const bool real_valued = c.kind == EpilogueKind::poly || c.kind == EpilogueKind::real;
  for (int i = 0; i < c.shape.c; ++i) {
    float target = real_valued ? 4.0f : fine ? 400.0f : 100.0f;
    if (draw(0, 15) == 0) target *= 500.0f;  // beyond int16
    float scale = target / spread * draw_float(0.2f, 1.5f);
    if (draw(0, 3) == 0) scale = std::exp2(std::floor(std::log2(scale)));  // exact halves
    c.scale.push_back(scale);
    c.bias.push_back(draw(-20000, 20000));
    c.zero.push_back(fine ? (draw(0, 3) ? draw(0, 1023) : 1023 * draw(0, 1)) : draw(0, 255));
    c.out_scale.push_back(draw_float(5.0f, 60.0f));
  }
  for (int i = 0; i < (fine ? 1024 : 256); ++i) c.table.push_back(static_cast<uint8_t>(draw(0, 255)));
  for (int i = 0; i < 96; ++i) c.poly.push_back(draw_float(-1.0f, 1.0f));
  c.poly[64] = c.poly[95] = 0.0f;  // asymptotes are straight lines, so that results stay within int32 (docs/engine.md)
  c.poly_b = draw_float(0.0f, 31.0f);
  c.lo = draw(0, 1) ? 0 : draw(0, 120);
  c.hi = draw(0, 1) ? 255 : draw(130, 255);
  c.unary = c.kind == EpilogueKind::real ? draw(0, 2) : 0;  // none, relu, clip(a, b)
  c.unary_a = draw_float(-3.0f, 0.0f), c.unary_b = draw_float(0.0f, 3.0f);
  c.raw = c.kind == EpilogueKind::real && draw(0, 1);
  if (!c.raw) return;
  c.unary = 0;
  for (auto& bias : c.bias) bias = draw(-(1 << 30), 1 << 30);  // no float holds such sums
}

Case draw_case() {
  static const int usual[] = {16, 32, 64, 128, 24, 48, 96, 40, 116, 8, 58, 192};
  Case c;
  rw::DepthwiseShape& s = c.shape;
  c.kind = static_cast<EpilogueKind>(draw(0, 4));
  s.c = draw(0, 2) ? usual[draw(0, 11)] : draw(1, 200);
  const int form = draw(0, 9);
  s.kh = s.kw = form < 6 ? 3 : 5;
  s.sh = s.sw = draw(1, 2);
  s.dh = s.dw = 1;
  if (form == 9) s.kh = draw(1, 7), s.kw = draw(1, 7), s.sh = draw(1, 3), s.sw = draw(1, 3), s.dh = draw(1, 3), s.dw = draw(1, 3);
  if (form == 0) s.dh = draw(1, 2), s.dw = draw(1, 2), s.sh = draw(1, 2);
  if (form == 9 && draw(0, 40) == 0) s.kh = 37, s.kw = 31, s.dh = s.dw = 1, s.c = draw(1, 9);
  s.out_float = c.kind == EpilogueKind::real;
  c.out_h = draw(1, 7), c.out_w = draw(1, draw(0, 1) ? 9 : 40);
  const bool dense = draw(0, 2) != 0;
  c.x_pixel = s.c + (dense ? 0 : draw(0, 70));
  const int in_w = (c.out_w - 1) * s.sw + (s.kw - 1) * s.dw + 1;
  c.x_row = in_w * c.x_pixel + (draw(0, 1) ? draw(0, 99) : 0);
  const int element = s.out_float ? 4 : 1;
  c.y_pixel = (s.c + (dense ? 0 : draw(0, 70))) * element;
  c.y_row = c.out_w * c.y_pixel + (draw(0, 1) ? draw(0, 99) * element : 0);
  c.begin = draw(0, 2) ? 0 : draw(0, c.out_h - 1);
  c.end = draw(0, 2) ? c.out_h : draw(c.begin, c.out_h);
  draw_constants(c);
  return c;
}

int64_t input_bytes(const Case& c) {
  const rw::DepthwiseShape& s = c.shape;
  return ((c.out_h - 1) * s.sh + (s.kh - 1) * s.dh) * c.x_row + ((c.out_w - 1) * s.sw + (s.kw - 1) * s.dw) * c.x_pixel + s.c;
}

int64_t output_bytes(const Case& c) { return (c.out_h - 1) * c.y_row + (c.out_w - 1) * c.y_pixel + c.shape.c * (c.shape.out_float ? 4 : 1); }

uint8_t saturated(float rounded, int zero, int lo, int hi) {
  const double q = static_cast<double>(rounded) + zero;
  return static_cast<uint8_t>(q < lo ? lo : q > hi ? hi : q);
}

void expect_one(const Case& c, int ch, int64_t acc, uint8_t* y) {
  const float v = static_cast<float>(static_cast<int32_t>(acc)) * c.scale[ch];
  if (c.raw) {
    const auto sum = static_cast<int32_t>(acc);
    std::memcpy(y, &sum, 4);
  } else if (c.kind == EpilogueKind::real) {
    const float clipped = std::fmin(std::fmax(v, c.unary_a), c.unary_b), f = c.unary == 0 ? v : c.unary == 1 ? std::fmax(v, 0.0f) : clipped;
    std::memcpy(y, &f, 4);
  } else if (c.kind == EpilogueKind::linear) {
    *y = saturated(std::nearbyint(v), c.zero[ch], c.lo, c.hi);
  } else if (c.kind == EpilogueKind::table) {
    *y = c.table[saturated(std::nearbyint(v), c.zero[ch], 0, 255)];
  } else if (c.kind == EpilogueKind::fine) {
    const double q = static_cast<double>(std::nearbyint(v)) + c.zero[ch];
    *y = c.table[static_cast<int>(std::fmin(std::fmax(q, 0.0), 1023.0))];
  } else {
    const float t = std::fmin(std::fmax(v + c.poly_b, 0.0f), 31.0f);
    const int i = static_cast<int>(t);
    const float f = (c.poly[64 + i] * v + c.poly[32 + i]) * v + c.poly[i];
    *y = saturated(std::nearbyint(f * c.out_scale[ch]), c.zero[ch], 0, 255);
  }
}

void expect(const Case& c, const uint8_t* x, std::vector<uint8_t>& y) {
  const rw::DepthwiseShape& s = c.shape;
  for (int row = c.begin; row < c.end; ++row)
    for (int column = 0; column < c.out_w; ++column)
      for (int ch = 0; ch < s.c; ++ch) {
        int64_t acc = c.bias[ch];
        for (int u = 0; u < s.kh; ++u)
          for (int v = 0; v < s.kw; ++v)
            acc += static_cast<int64_t>(x[(row * s.sh + u * s.dh) * c.x_row + (column * s.sw + v * s.dw) * c.x_pixel + ch]) *
                   c.w[(static_cast<size_t>(u) * s.kw + v) * s.c + ch];
        expect_one(c, ch, acc, y.data() + row * c.y_row + column * c.y_pixel + ch * (s.out_float ? 4 : 1));
      }
}

bool check(rw::Isa isa, const Case& c, const uint8_t* x, const std::vector<uint8_t>& before, const std::vector<uint8_t>& expected) {
  const rw::DepthwiseKernel& kernel = depthwise_u8_on(isa);
  const size_t bytes = kernel.packed_bytes(c.shape), room = (bytes + 127) / 64 * 64;
  uint8_t* packed = static_cast<uint8_t*>(aligned_alloc(64, room));
  std::memset(packed, 0x5a, room);
  const rw::Epilogue e = {c.kind,          c.bias.data(), nullptr,  c.raw ? nullptr : c.scale.data(), c.zero.data(), c.out_scale.data(), c.table.data(),
                          c.poly.data(),   c.poly_b, c.lo,           c.hi,          c.unary,            c.unary_a,
                          c.unary_b};
  kernel.pack(c.shape, {c.w.data(), e}, packed);
  bool good = true;
  for (size_t i = bytes; i < room; ++i) good = good && packed[i] == 0x5a;
  Fenced y(expected.size());
  std::memcpy(y.data, before.data(), before.size());
  kernel.run(c.shape, {x, c.x_row, c.x_pixel, packed, y.data, c.y_row, c.y_pixel, c.out_h, c.out_w}, c.begin, c.end);
  free(packed);
  const int64_t at = y.difference(expected);
  if (good && at < 0) return true;
  const rw::DepthwiseShape& s = c.shape;
  printf("%s: %s, byte %lld (row %lld, pixel %lld, byte %lld)\n", name_of(isa), good ? "wrong output" : "pack() wrote too far",
         static_cast<long long>(at), static_cast<long long>(at / c.y_row), static_cast<long long>(at % c.y_row / c.y_pixel),
         static_cast<long long>(at % c.y_row % c.y_pixel));
  printf("  kernel %dx%d, stride %d %d, dilation %d %d, channels %d, epilogue %d, output %dx%d, rows %d to %d, pixels %lld %lld\n", s.kh, s.kw, s.sh,
         s.sw, s.dh, s.dw, s.c, static_cast<int>(c.kind), c.out_h, c.out_w, c.begin, c.end, static_cast<long long>(c.x_pixel),
         static_cast<long long>(c.y_pixel));
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? atoi(argv[1]) : 3000;
  source().seed(argc > 2 ? static_cast<unsigned>(atoi(argv[2])) : 1);
  int bad = 0;
  for (int i = 0; i < cases && bad < 10; ++i) {
    const Case c = draw_case();
    const Fenced x(static_cast<size_t>(input_bytes(c)) + 64), start(static_cast<size_t>(output_bytes(c)));
    const std::vector<uint8_t> before = start.copy();
    std::vector<uint8_t> expected = before;
    expect(c, x.data, expected);
    for (rw::Isa isa : paths())
      if (!check(isa, c, x.data, before, expected)) ++bad;
  }
  printf("depthwise_u8: %d cases on", cases);
  for (rw::Isa isa : paths()) printf(" %s", name_of(isa));
  printf(": %s\n", bad ? "FAILED" : "all equal");
  return bad ? 1 : 0;
}
