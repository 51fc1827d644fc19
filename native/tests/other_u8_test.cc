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

#include "u8_images.h"

namespace {

using namespace rw_test;
using rw::Image;

uint8_t quantized(float rounded, int zero, int lo, int hi) {
  const double q = static_cast<double>(rounded) + zero;
  return static_cast<uint8_t>(q < lo ? lo : q > hi ? hi : q);
}

float draw_scale() {
  const float s = std::exp(draw_float(-6.0f, 3.0f));
  return draw(0, 2) ? s : std::exp2(std::floor(std::log2(s)));  // powers of two: exact halves
}

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

// Quotients at halves and the numbers next to them, by every kind of scale: a product with the reciprocal would not do.
void test_quantize_ties() {
  const int n = 512;
  Fenced x(n * 4), y(n);
  float* const floats = reinterpret_cast<float*>(x.data);
  const float scale = draw(0, 20) ? draw_float(0.5f, 2.0f) * std::exp2(static_cast<float>(draw(-60, 60))) : draw_scale();
  const int zero = draw(0, 255);
  for (int i = 0; i < n; ++i) {
    float v = static_cast<float>((draw(-600, 600) + 0.5) * static_cast<double>(scale));
    for (int steps = draw(-2, 2); steps != 0; steps += steps < 0 ? 1 : -1) v = std::nextafter(v, steps < 0 ? -INFINITY : INFINITY);
    floats[i] = v;
  }
  compare("quantize", y, [&](rw::Isa isa) { quantize_on(isa)(floats, 1, y.data, 1, n, scale, zero); },
          [&] { for (int i = 0; i < n; ++i) y.data[i] = quantize_one(floats[i], scale, zero); });
  const float* const planes[3] = {floats, floats + 128, floats + 256};
  const float scales[3] = {scale, scale, scale};
  const int32_t zeros[3] = {zero, zero, zero};
  Fenced z(3 * 128);
  compare("quantize_planes", z, [&](rw::Isa isa) { quantize_planes_on(isa)(planes, 3, z.data, 3, 128, scales, zeros); },
          [&] { for (int i = 0; i < 128; ++i) for (int c = 0; c < 3; ++c) z.data[3 * i + c] = quantize_one(planes[c][i], scale, zero); });
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
                             test_linear, test_gather, test_quantize, test_quantize_ties, test_quantize_planes, test_dequantize, test_transpose};
  for (int i = 0; i < rounds && failures < 10; ++i)
    for (const auto test : tests) test();
  printf("kernels on codes: %d rounds on", rounds);
  for (rw::Isa isa : paths()) printf(" %s", name_of(isa));
  printf(": %s\n", failures ? "FAILED" : "all equal");
  return failures ? 1 : 0;
}
