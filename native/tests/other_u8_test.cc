// Every path of the kernels on codes besides the convolutions, against formulas written from docs/engine.md.
//
// Inputs and outputs end directly in front of a forbidden page; whole output buffers are compared, so a byte written between
// pixels, rows or outside of the range of rows is seen. Arithmetic here is in double or int64 wherever that is exact; where the
// contract rounds each float32 operation, the operations stand here in the same order.
//
// Usage: other_u8_test [rounds] [seed]
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "u8_paths.h"

namespace {

using namespace rw_test;
using rw::Image;

int failures = 0;

// Memory of an image with random gaps between pixels and rows; step 0 where it is broadcast.
struct Picture {
  Picture(int h, int w, int c, int element = 1, bool broadcast_w = false, bool broadcast_h = false) {
    const bool dense = draw(0, 1);
    image.h = h, image.w = w, image.c = c;
    const int64_t pixel = static_cast<int64_t>(c + (dense ? 0 : draw(0, 40))) * element;
    image.pixel = broadcast_w ? 0 : pixel;
    const int64_t row = (broadcast_w ? 1 : w) * pixel + (dense ? 0 : draw(0, 40)) * element;
    image.row = broadcast_h ? 0 : row;
    const int64_t bytes = (broadcast_h ? 0 : (h - 1) * row) + (broadcast_w ? 0 : (w - 1) * pixel) + static_cast<int64_t>(c) * element;
    memory = std::make_unique<Fenced>(static_cast<size_t>(bytes));
    image.data = memory->data;
  }
  uint8_t* at(int64_t y, int64_t x, int64_t byte = 0) const { return memory->data + y * image.row + x * image.pixel + byte; }
  int code(int64_t y, int64_t x, int64_t c) const { return *at(y, x, c); }
  Image image;
  std::unique_ptr<Fenced> memory;
};

// Runs `kernel(isa)` on every path into the same output, which starts as it was, and compares with what `expect` writes.
template <class Kernel, class Expect>
void compare(const char* name, Fenced& y, const Kernel& kernel, const Expect& expect) {
  const std::vector<uint8_t> before = y.copy();
  expect();
  const std::vector<uint8_t> expected = y.copy();
  for (rw::Isa isa : paths()) {
    std::memcpy(y.data, before.data(), before.size());
    kernel(isa);
    const int64_t at = y.difference(expected);
    if (at < 0) continue;
    printf("%s on %s: byte %lld is %d, not %d\n", name, name_of(isa), static_cast<long long>(at), y.data[at], expected[static_cast<size_t>(at)]);
    ++failures;
  }
}

uint8_t quantized(float rounded, int zero, int lo, int hi) {
  const double q = static_cast<double>(rounded) + zero;
  return static_cast<uint8_t>(q < lo ? lo : q > hi ? hi : q);
}

float draw_scale() {
  const float s = std::exp(draw_float(-6.0f, 3.0f));
  return draw(0, 2) ? s : std::exp2(std::floor(std::log2(s)));  // powers of two: exact halves
}

int draw_channels() {
  static const int usual[] = {1, 3, 16, 24, 32, 64, 96, 116, 128, 232};
  return draw(0, 1) ? usual[draw(0, 9)] : draw(1, 300);
}

struct Rows {
  explicit Rows(int h) : begin(draw(0, 2) ? 0 : draw(0, h - 1)), end(draw(0, 2) ? h : draw(begin, h)) {}
  int begin, end;
};

void test_add() {
  const int h = draw(1, 5), w = draw(1, 9), c = draw_channels();
  const Picture a(h, w, c), b(h, w, c, 1, draw(0, 3) == 0, draw(0, 3) == 0), y(h, w, c);
  std::vector<float> ma, mb;
  std::vector<int32_t> zero;
  for (int i = 0; i < c; ++i) ma.push_back(draw_scale()), mb.push_back(draw_scale() * (draw(0, 30) ? 1.0f : 1e6f)), zero.push_back(draw(0, 255));
  const rw::AddParams p = {draw(0, 255), draw(0, 255), draw(0, 1) * 17, 255 - draw(0, 1) * 40, ma.data(), mb.data(), zero.data()};
  const Rows rows(h);
  compare("add_u8", *y.memory, [&](rw::Isa isa) { add_u8_on(isa)(a.image, b.image, y.image, p, rows.begin, rows.end); },
          [&] {
            for (int r = rows.begin; r < rows.end; ++r)
              for (int x = 0; x < w; ++x)
                for (int i = 0; i < c; ++i) {
                  const float left = static_cast<float>(a.code(r, x, i) - p.za) * ma[i], right = static_cast<float>(b.code(r, x, i) - p.zb) * mb[i];
                  *y.at(r, x, i) = quantized(std::nearbyint(left + right), zero[i], p.lo, p.hi);
                }
          });
}

void test_mul() {
  const int h = draw(1, 5), w = draw(1, 9), c = draw_channels();
  const Picture a(h, w, c), b(h, w, c, 1, draw(0, 2) == 0, draw(0, 2) == 0), y(h, w, c);
  const rw::MulParams p = {draw(0, 255), draw(0, 255), draw(0, 255), draw(0, 1) * 17, 255 - draw(0, 1) * 40, draw_scale() / 100.0f};
  const Rows rows(h);
  compare("mul_u8", *y.memory, [&](rw::Isa isa) { mul_u8_on(isa)(a.image, b.image, y.image, p, rows.begin, rows.end); },
          [&] {
            for (int r = rows.begin; r < rows.end; ++r)
              for (int x = 0; x < w; ++x)
                for (int i = 0; i < c; ++i) {
                  const int64_t product = static_cast<int64_t>(a.code(r, x, i) - p.za) * (b.code(r, x, i) - p.zb);
                  *y.at(r, x, i) = quantized(std::nearbyint(static_cast<float>(product) * p.m), p.zy, p.lo, p.hi);
                }
          });
}

void test_table() {
  const int h = draw(1, 5), w = draw(1, 9), c = draw_channels();
  const Picture x(h, w, c), y(h, w, c);
  const Fenced codes(256);
  const Rows rows(h);
  compare("table_u8", *y.memory, [&](rw::Isa isa) { table_u8_on(isa)(x.image, y.image, codes.data, rows.begin, rows.end); },
          [&] {
            for (int r = rows.begin; r < rows.end; ++r)
              for (int i = 0; i < w; ++i)
                for (int k = 0; k < c; ++k) *y.at(r, i, k) = codes.data[x.code(r, i, k)];
          });
}

// Window sizes from 1x1 to 13x13, padding smaller than the window, outputs as ONNX counts them (rounded down or up).
struct Window {
  Window() {
    const int same[] = {2, 3, 5, 9, 13};
    kh = kw = same[draw(0, 4)];
    sh = sw = kh <= 3 ? draw(1, 2) : 1;
    if (draw(0, 2) == 0) kh = draw(1, 7), kw = draw(1, 7), sh = draw(1, 3), sw = draw(1, 3);
    top = draw(0, kh / 2), left = draw(0, kw / 2);
    const int bottom = draw(0, kh / 2), right = draw(0, kw / 2);
    h = draw(1, 16), w = draw(1, 16);
    if (h + top + bottom < kh) h = kh;
    if (w + left + right < kw) w = kw;
    if (draw(0, 9) == 0) kh = h, kw = w, sh = sw = 1, top = left = 0, out_h = out_w = 1;  // global
    else out_h = (h + top + bottom - kh) / sh + 1, out_w = (w + left + right - kw) / sw + 1;
  }
  int kh, kw, sh, sw, top, left, h, w, out_h, out_w;
};

template <class F>
void each_position(const Window& k, int r, int x, const F& f) {
  for (int u = r * k.sh - k.top; u < r * k.sh - k.top + k.kh; ++u)
    for (int v = x * k.sw - k.left; v < x * k.sw - k.left + k.kw; ++v)
      if (u >= 0 && u < k.h && v >= 0 && v < k.w) f(u, v);
}

void test_maxpool() {
  const Window k;
  const int c = draw_channels();
  const Picture x(k.h, k.w, c), y(k.out_h, k.out_w, c);
  const rw::PoolParams p = {k.kh, k.kw, k.sh, k.sw, k.top, k.left, false, 0, 0, nullptr};
  const Rows rows(k.out_h);
  compare("maxpool_u8", *y.memory, [&](rw::Isa isa) { maxpool_u8_on(isa)(x.image, y.image, p, rows.begin, rows.end); },
          [&] {
            for (int r = rows.begin; r < rows.end; ++r)
              for (int i = 0; i < k.out_w; ++i)
                for (int ch = 0; ch < c; ++ch) {
                  int best = 0;
                  each_position(k, r, i, [&](int u, int v) { best = std::max(best, x.code(u, v, ch)); });
                  *y.at(r, i, ch) = static_cast<uint8_t>(best);
                }
          });
}

void test_avgpool() {
  const Window k;
  const int c = draw_channels();
  const Picture x(k.h, k.w, c), y(k.out_h, k.out_w, c);
  std::vector<float> m(static_cast<size_t>(k.kh) * k.kw + 1, 0.0f);
  for (size_t n = 1; n < m.size(); ++n) m[n] = draw_scale() / static_cast<float>(n);
  const rw::PoolParams p = {k.kh, k.kw, k.sh, k.sw, k.top, k.left, draw(0, 1) == 1, draw(0, 255), draw(0, 255), m.data()};
  const Rows rows(k.out_h);
  compare("avgpool_u8", *y.memory, [&](rw::Isa isa) { avgpool_u8_on(isa)(x.image, y.image, p, rows.begin, rows.end); },
          [&] {
            for (int r = rows.begin; r < rows.end; ++r)
              for (int i = 0; i < k.out_w; ++i)
                for (int ch = 0; ch < c; ++ch) {
                  int64_t sum = 0;
                  size_t n = 0;
                  each_position(k, r, i, [&](int u, int v) { sum += x.code(u, v, ch) - p.zx, ++n; });
                  if (p.count_padding) n = static_cast<size_t>(k.kh) * k.kw;
                  *y.at(r, i, ch) = quantized(std::nearbyint(static_cast<float>(sum) * m[n]), p.zy, 0, 255);
                }
          });
}

void test_nearest() {
  const int element = draw(0, 1) ? 1 : 4, h = draw(1, 6), w = draw(1, 6), c = draw_channels(), out_h = draw(1, 9), out_w = draw(1, 9);
  const Picture x(h, w, c, element), y(out_h, out_w, c, element);
  std::vector<int32_t> row, column;
  for (int i = 0; i < out_h; ++i) row.push_back(draw(0, h - 1));
  for (int i = 0; i < out_w; ++i) column.push_back(draw(0, w - 1));
  const Rows rows(out_h);
  compare("nearest", *y.memory, [&](rw::Isa isa) { nearest_on(isa)(x.image, y.image, element, row.data(), column.data(), rows.begin, rows.end); },
          [&] {
            for (int r = rows.begin; r < rows.end; ++r)
              for (int i = 0; i < out_w; ++i)
                for (int b = 0; b < c * element; ++b) *y.at(r, i, b) = *x.at(row[r], column[i], b);
          });
}

void test_linear() {
  const int h = draw(1, 6), w = draw(1, 6), c = draw_channels(), out_h = draw(1, 9), out_w = draw(1, 9);
  const Picture x(h, w, c), y(out_h, out_w, c);
  std::vector<int32_t> row0, row1, column0, column1;
  std::vector<float> wy, wx;
  const auto weight = [] { return draw(0, 1) ? 0.25f * static_cast<float>(draw(0, 4)) : draw_float(0.0f, 1.0f); };
  for (int i = 0; i < out_h; ++i) row0.push_back(draw(0, h - 1)), row1.push_back(draw(0, h - 1)), wy.push_back(weight());
  for (int i = 0; i < out_w; ++i) column0.push_back(draw(0, w - 1)), column1.push_back(draw(0, w - 1)), wx.push_back(weight());
  const rw::LinearParams p = {row0.data(), row1.data(), wy.data(), column0.data(), column1.data(), wx.data()};
  const Rows rows(out_h);
  compare("linear_u8", *y.memory, [&](rw::Isa isa) { linear_u8_on(isa)(x.image, y.image, p, rows.begin, rows.end); },
          [&] {
            for (int r = rows.begin; r < rows.end; ++r)
              for (int i = 0; i < out_w; ++i)
                for (int ch = 0; ch < c; ++ch) {
                  const auto code = [&](int u, int v) { return static_cast<float>(x.code(u, v, ch)); };
                  const float left = 1.0f - wx[i], up = 1.0f - wy[r];
                  const float top = code(row0[r], column0[i]) * left + code(row0[r], column1[i]) * wx[i];
                  const float bottom = code(row1[r], column0[i]) * left + code(row1[r], column1[i]) * wx[i];
                  *y.at(r, i, ch) = quantized(std::nearbyint(top * up + bottom * wy[r]), 0, 0, 255);
                }
          });
}

void test_gather() {
  const int element = draw(0, 2) ? 1 : 4, h = draw(1, 5), w = draw(1, 5), from = draw_channels(), c = draw_channels();
  const Picture x(h, w, from, element), y(h, w, c, element);
  std::vector<int32_t> index;
  for (int i = 0; i < c; ++i) index.push_back(draw(0, from - 1));
  const Rows rows(h);
  compare("gather", *y.memory, [&](rw::Isa isa) { gather_on(isa)(x.image, y.image, element, index.data(), rows.begin, rows.end); },
          [&] {
            for (int r = rows.begin; r < rows.end; ++r)
              for (int i = 0; i < w; ++i)
                for (int b = 0; b < c * element; ++b) *y.at(r, i, b) = *x.at(r, i, index[b / element] * element + b % element);
          });
}

// Mostly moderate values; some halves of the scale, some huge, infinite or not a number (which becomes the lowest code).
void fill_floats(float* x, int64_t n, float scale) {
  for (int64_t i = 0; i < n; ++i) {
    x[i] = scale * draw_float(-300.0f, 300.0f);
    const int kind = draw(0, 40);
    if (kind < 8) x[i] = scale * (0.5f + static_cast<float>(draw(-300, 300)));
    if (kind == 8) x[i] = draw(0, 1) ? 3e38f : -3e38f;
    if (kind == 9) x[i] = draw(0, 1) ? std::numeric_limits<float>::infinity() : -std::numeric_limits<float>::infinity();
    if (kind == 10) x[i] = std::numeric_limits<float>::quiet_NaN();
  }
}

uint8_t quantize_one(float x, float scale, int zero) {
  return std::isnan(x) ? 0 : quantized(std::nearbyint(x / scale), zero, 0, 255);
}

void test_quantize() {
  const int64_t n = draw(1, 300), x_step = draw(0, 1) ? 1 : draw(1, 5), y_step = draw(0, 1) ? 1 : draw(1, 5);
  const float scale = draw_scale();
  const int zero = draw(0, 255);
  const Fenced x(static_cast<size_t>((n - 1) * x_step + 1) * 4);
  Fenced y(static_cast<size_t>((n - 1) * y_step + 1));
  float* floats = reinterpret_cast<float*>(x.data);
  fill_floats(floats, (n - 1) * x_step + 1, scale);
  compare("quantize", y, [&](rw::Isa isa) { quantize_on(isa)(floats, x_step, y.data, y_step, n, scale, zero); },
          [&] { for (int64_t i = 0; i < n; ++i) y.data[i * y_step] = quantize_one(floats[i * x_step], scale, zero); });
  std::vector<float> scales;
  std::vector<int32_t> zeros;
  for (int64_t i = 0; i < n; ++i) scales.push_back(draw_scale()), zeros.push_back(draw(0, 255));
  Fenced z(static_cast<size_t>(n));
  compare("quantize_row", z, [&](rw::Isa isa) { quantize_row_on(isa)(floats, z.data, n, scales.data(), zeros.data()); },
          [&] { for (int64_t i = 0; i < n; ++i) z.data[i] = quantize_one(floats[i], scales[i], zeros[i]); });
}

void test_quantize_planes() {
  const int channels = draw(0, 2) ? 3 : draw(1, 6), w = draw(1, 200);
  const int64_t pixel = channels + (draw(0, 2) ? 0 : draw(0, 5));
  std::vector<std::unique_ptr<Fenced>> memory;
  std::vector<const float*> planes;
  std::vector<float> scale;
  std::vector<int32_t> zero;
  for (int c = 0; c < channels; ++c) {
    scale.push_back(draw_scale()), zero.push_back(draw(0, 255));
    memory.push_back(std::make_unique<Fenced>(static_cast<size_t>(w) * 4));
    fill_floats(reinterpret_cast<float*>(memory.back()->data), w, scale.back());
    planes.push_back(reinterpret_cast<const float*>(memory.back()->data));
  }
  Fenced y(static_cast<size_t>((w - 1) * pixel + channels));
  compare("quantize_planes", y, [&](rw::Isa isa) { quantize_planes_on(isa)(planes.data(), channels, y.data, pixel, w, scale.data(), zero.data()); },
          [&] {
            for (int i = 0; i < w; ++i)
              for (int c = 0; c < channels; ++c) y.data[i * pixel + c] = quantize_one(planes[c][i], scale[c], zero[c]);
          });
}

void test_dequantize() {
  const int64_t n = draw(1, 300), x_step = draw(0, 1) ? 1 : draw(1, 5), y_step = draw(0, 1) ? 1 : draw(1, 5);
  const float scale = draw_scale();
  const int zero = draw(0, 255);
  const Fenced x(static_cast<size_t>((n - 1) * x_step + 1));
  Fenced y(static_cast<size_t>((n - 1) * y_step + 1) * 4), z(static_cast<size_t>(n) * 4);
  float *to = reinterpret_cast<float*>(y.data), *row = reinterpret_cast<float*>(z.data);
  compare("dequantize", y, [&](rw::Isa isa) { dequantize_on(isa)(x.data, x_step, to, y_step, n, scale, zero); },
          [&] { for (int64_t i = 0; i < n; ++i) to[i * y_step] = static_cast<float>(x.data[i * x_step] - zero) * scale; });
  std::vector<float> scales;
  std::vector<int32_t> zeros;
  for (int64_t i = 0; i < n; ++i) scales.push_back(draw_scale()), zeros.push_back(draw(0, 255));
  compare("dequantize_row", z, [&](rw::Isa isa) { dequantize_row_on(isa)(x.data, row, n, scales.data(), zeros.data()); },
          [&] { for (int64_t i = 0; i < n; ++i) row[i] = static_cast<float>(x.data[i] - zeros[i]) * scales[i]; });
}

void test_transpose() {
  const bool image = draw(0, 3) == 0;  // three planes of floats to dense pixels have a way of their own
  const int element = image || draw(0, 1) ? 4 : 1, rows = image ? 3 : draw(1, 70), columns = draw(1, 70);
  const int64_t x_row = static_cast<int64_t>(columns + draw(0, 9)) * element, y_row = static_cast<int64_t>(rows + (image ? 0 : draw(0, 9))) * element;
  const Fenced x(static_cast<size_t>((rows - 1) * x_row + columns * element));
  Fenced y(static_cast<size_t>((columns - 1) * y_row + rows * element));
  compare("transpose", y, [&](rw::Isa isa) { transpose_on(isa)(x.data, x_row, y.data, y_row, rows, columns, element); },
          [&] {
            for (int c = 0; c < columns; ++c)
              for (int b = 0; b < rows * element; ++b) y.data[c * y_row + b] = x.data[b / element * x_row + c * element + b % element];
          });
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? atoi(argv[1]) : 400;
  source().seed(argc > 2 ? static_cast<unsigned>(atoi(argv[2])) : 1);
  void (*const tests[])() = {test_add,    test_mul,    test_table,    test_maxpool,         test_avgpool,    test_nearest,
                             test_linear, test_gather, test_quantize, test_quantize_planes, test_dequantize, test_transpose};
  for (int i = 0; i < rounds && failures < 10; ++i)
    for (const auto test : tests) test();
  printf("kernels on codes: %d rounds on", rounds);
  for (rw::Isa isa : paths()) printf(" %s", name_of(isa));
  printf(": %s\n", failures ? "FAILED" : "all equal");
  return failures ? 1 : 0;
}
