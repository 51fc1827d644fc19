// Times of the kernels on codes, one thread: best and median of many runs, each path this CPU has.
//
// Usage: u8_bench [depthwise|other] [repeats]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>

#include "u8_paths.h"

namespace {

using namespace rw_test;
using rw::Image;

struct Times {
  double best, median;  // microseconds
};

Times measure(int repeats, const std::function<void()>& work) {
  std::vector<double> t;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    t.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(t.begin(), t.end());
  return {t[0], t[t.size() / 2]};
}

// The depthwise layers of YOLOX-Nano at 416 x 416: output size, channels, stride, how many.
struct Layer {
  int size, c, stride, count;
};
const Layer nano[] = {{104, 16, 2, 1}, {104, 16, 1, 1}, {52, 32, 2, 1}, {52, 32, 1, 4},  {52, 64, 1, 4},
                      {26, 64, 2, 2},  {26, 64, 1, 9},  {13, 64, 1, 4}, {13, 128, 2, 2}, {13, 128, 1, 2}};
const Layer others[] = {{56, 24, 1, 1}, {56, 96, 1, 1}, {28, 116, 1, 1}, {28, 144, 1, 1}, {28, 58, 1, 1}, {112, 32, 1, 1}, {28, 128, 1, 1}, {14, 64, 2, 1}};

Times depthwise(rw::Isa isa, const Layer& l, int k, rw::EpilogueKind kind, int repeats) {
  const rw::DepthwiseShape s = {k, k, l.stride, l.stride, 1, 1, l.c, kind == rw::EpilogueKind::real};
  const rw::DepthwiseKernel& kernel = depthwise_u8_on(isa);
  const size_t c = static_cast<size_t>(l.c);
  std::vector<int8_t> w(c * k * k);
  for (auto& v : w) v = static_cast<int8_t>(draw(-127, 127));
  std::vector<int32_t> bias(c, 100), zero(c, 128);
  std::vector<float> scale(c, kind == rw::EpilogueKind::poly ? 1e-4f : 2e-3f), out_scale(c, 20.0f), poly(96, 0.5f);
  std::vector<uint8_t> table(1024, 7);
  const rw::Epilogue e = {kind, bias.data(), nullptr, scale.data(), zero.data(), out_scale.data(), table.data(), poly.data(), 16.0f, 0, 255, 0, 0, 0};
  void* packed = aligned_alloc(64, (kernel.packed_bytes(s) + 63) / 64 * 64);
  kernel.pack(s, {w.data(), e}, packed);
  const int in = (l.size - 1) * l.stride + k;
  const Fenced x(static_cast<size_t>(in) * in * l.c + 64), y(static_cast<size_t>(l.size) * l.size * l.c * (s.out_float ? 4 : 1));
  const rw::DepthwiseRun r = {x.data, static_cast<int64_t>(in) * l.c, l.c, packed, y.data, static_cast<int64_t>(l.size) * l.c * (s.out_float ? 4 : 1),
                              static_cast<int64_t>(l.c) * (s.out_float ? 4 : 1), l.size, l.size};
  const Times t = measure(repeats, [&] { kernel.run(s, r, 0, l.size); });
  free(packed);
  return t;
}

void bench_depthwise(int repeats) {
  for (rw::Isa isa : paths()) {
    const int n = isa == rw::Isa::portable ? repeats / 50 + 1 : repeats;
    for (const auto kind : {rw::EpilogueKind::linear, rw::EpilogueKind::table, rw::EpilogueKind::fine, rw::EpilogueKind::poly}) {
      const char* names[] = {"linear", "table", "poly", "real", "fine"};
      double best = 0, median = 0;
      for (const Layer& l : nano) {
        const Times t = depthwise(isa, l, 3, kind, n);
        best += t.best * l.count, median += t.median * l.count;
        if (kind == rw::EpilogueKind::table)
          printf("%-11s 3x3 stride %d, %3d channels at %3d: %8.2f us (median %8.2f), %5.2f outputs/ns, x %d\n", name_of(isa), l.stride, l.c, l.size, t.best,
                 t.median, l.size * l.size * l.c / t.best / 1e3, l.count);
      }
      printf("%-11s the 30 depthwise layers of YOLOX-Nano, %-6s: %8.1f us (medians %8.1f)\n", name_of(isa), names[static_cast<int>(kind)], best, median);
    }
    for (const Layer& l : others)
      for (int k : {3, 5}) {
        const Times t = depthwise(isa, l, k, rw::EpilogueKind::table, n);
        printf("%-11s %dx%d stride %d, %3d channels at %3d: %8.2f us (median %8.2f), %5.2f outputs/ns\n", name_of(isa), k, k, l.stride, l.c, l.size, t.best,
               t.median, l.size * l.size * l.c / t.best / 1e3);
      }
  }
}

struct Dense {
  Dense(int h, int w, int c, int element = 1) : memory(static_cast<size_t>(h) * w * c * element) {
    const int64_t pixel = static_cast<int64_t>(c) * element;
    image = {memory.data, w * pixel, pixel, h, w, c};
  }
  Fenced memory;
  Image image;
};

// What a kernel reads and writes once, per time.
void report(rw::Isa isa, const char* name, double bytes, Times t) {
  printf("%-11s %-48s %9.2f us (median %9.2f), %6.1f GB/s\n", name_of(isa), name, t.best, t.median, bytes / t.best / 1e3);
}

void bench_images(rw::Isa isa, int n) {
  for (int c : {32, 64, 58}) {
    char name[64];
    const Dense a(52, 52, c), b(52, 52, c), y(52, 52, c), x2(104, 104, c);
    const double bytes = 52.0 * 52 * c;
    const std::vector<float> m(static_cast<size_t>(c), 0.7f);
    const std::vector<int32_t> zero(static_cast<size_t>(c), 99);
    const rw::AddParams add = {3, 5, 0, 255, m.data(), m.data(), zero.data()};
    snprintf(name, sizeof name, "add_u8, 52x52x%d", c);
    report(isa, name, 3 * bytes, measure(n, [&] { add_u8_on(isa)(a.image, b.image, y.image, add, 0, 52); }));
    snprintf(name, sizeof name, "mul_u8, 52x52x%d", c);
    report(isa, name, 3 * bytes, measure(n, [&] { mul_u8_on(isa)(a.image, b.image, y.image, {3, 5, 7, 0, 255, 0.01f}, 0, 52); }));
    snprintf(name, sizeof name, "table_u8, 52x52x%d", c);
    report(isa, name, 2 * bytes, measure(n, [&] { table_u8_on(isa)(a.image, y.image, b.memory.data, 0, 52); }));
    std::vector<int32_t> half, zeros(104), index;
    for (int i = 0; i < 104; ++i) half.push_back(i / 2), zeros[i] = half[i];
    const std::vector<float> w(104, 0.25f);
    snprintf(name, sizeof name, "nearest x2, 52x52x%d", c);
    report(isa, name, 5 * bytes, measure(n, [&] { nearest_on(isa)(a.image, x2.image, 1, half.data(), half.data(), 0, 104); }));
    snprintf(name, sizeof name, "linear_u8 x2, 52x52x%d", c);
    report(isa, name, 5 * bytes, measure(n, [&] {
             linear_u8_on(isa)(a.image, x2.image, {half.data(), half.data(), w.data(), half.data(), half.data(), w.data()}, 0, 104);
           }));
    for (int i = 0; i < c; ++i) index.push_back((i * 37) % c);
    snprintf(name, sizeof name, "gather, 52x52x%d", c);
    report(isa, name, 2 * bytes, measure(n, [&] { gather_on(isa)(a.image, y.image, 1, index.data(), 0, 52); }));
  }
}

void bench_pools(rw::Isa isa, int n) {
  for (int k : {5, 9, 13}) {
    const Dense x(13, 13, 128), y(13, 13, 128);
    char name[64];
    snprintf(name, sizeof name, "maxpool_u8 %dx%d, 13x13x128", k, k);
    report(isa, name, 2.0 * 13 * 13 * 128, measure(n, [&] { maxpool_u8_on(isa)(x.image, y.image, {k, k, 1, 1, k / 2, k / 2, false, 0, 0, nullptr}, 0, 13); }));
  }
  for (int k : {2, 3})
    for (int c : {24, 64}) {
      const Dense x(112, 112, c), y(56, 56, c);
      char name[64];
      snprintf(name, sizeof name, "maxpool_u8 %dx%d stride 2, 112x112x%d", k, k, c);
      const rw::PoolParams p = {k, k, 2, 2, k / 3, k / 3, false, 0, 0, nullptr};
      report(isa, name, 1.25 * 112 * 112 * c, measure(n, [&] { maxpool_u8_on(isa)(x.image, y.image, p, 0, 56); }));
    }
  const Dense x(7, 7, 1280), y(1, 1, 1280), wide(56, 56, 64), half(28, 28, 64);
  const std::vector<float> m(50, 0.02f);
  report(isa, "avgpool_u8 global, 7x7x1280", 7 * 7 * 1280,
         measure(n, [&] { avgpool_u8_on(isa)(x.image, y.image, {7, 7, 1, 1, 0, 0, false, 3, 5, m.data()}, 0, 1); }));
  report(isa, "avgpool_u8 2x2 stride 2, 56x56x64", 1.25 * 56 * 56 * 64,
         measure(n, [&] { avgpool_u8_on(isa)(wide.image, half.image, {2, 2, 2, 2, 0, 0, false, 3, 5, m.data()}, 0, 28); }));
}

void bench_moves(rw::Isa isa, int n) {
  const int size = 416, all = size * size;
  const Dense planes(4, size, size, 4), codes(size, size, 3), floats(size, size, 1, 4), flat(size, size, 1);
  float* x = reinterpret_cast<float*>(planes.memory.data);
  for (int i = 0; i < 3 * all; ++i) x[i] = draw_float(0.0f, 255.0f);
  const std::vector<float> scale(static_cast<size_t>(all), 1.0f);
  const std::vector<int32_t> zero(static_cast<size_t>(all), 0);
  report(isa, "quantize_planes, 3 x 416x416", 15.0 * all, measure(n, [&] {
           for (int r = 0; r < size; ++r) {
             const float* rows[] = {x + r * size, x + all + r * size, x + 2 * all + r * size};
             quantize_planes_on(isa)(rows, 3, codes.memory.data + r * size * 3, 3, size, scale.data(), zero.data());
           }
         }));
  float* y = reinterpret_cast<float*>(floats.memory.data);
  report(isa, "quantize, 416x416", 5.0 * all, measure(n, [&] { quantize_on(isa)(x, 1, flat.memory.data, 1, all, 1.0f, 0); }));
  report(isa, "quantize_row, 416x416", 13.0 * all, measure(n, [&] { quantize_row_on(isa)(x, flat.memory.data, all, scale.data(), zero.data()); }));
  report(isa, "dequantize, 416x416", 5.0 * all, measure(n, [&] { dequantize_on(isa)(flat.memory.data, 1, y, 1, all, 1.0f, 0); }));
  report(isa, "dequantize_row, 416x416", 13.0 * all, measure(n, [&] { dequantize_row_on(isa)(flat.memory.data, y, all, scale.data(), zero.data()); }));
  report(isa, "transpose u8, 2704 x 64", 2.0 * 2704 * 64, measure(n, [&] { transpose_on(isa)(flat.memory.data, 64, codes.memory.data, 2704, 2704, 64, 1); }));
  report(isa, "transpose f32, 2704 x 64", 8.0 * 2704 * 64, measure(n, [&] { transpose_on(isa)(x, 256, y, 2704 * 4, 2704, 64, 4); }));
  report(isa, "transpose f32, 3549 x 85", 8.0 * 3549 * 85, measure(n, [&] { transpose_on(isa)(x, 340, x + 3549 * 85, 3549 * 4, 3549, 85, 4); }));
}

}  // namespace

int main(int argc, char** argv) {
  const char* what = argc > 1 ? argv[1] : "all";
  const int repeats = argc > 2 ? atoi(argv[2]) : 500;
  if (std::strcmp(what, "other") != 0) bench_depthwise(repeats);
  if (std::strcmp(what, "depthwise") != 0)
    for (rw::Isa isa : paths()) {
      const int n = isa == rw::Isa::portable ? repeats / 20 + 1 : repeats;
      bench_images(isa, n), bench_pools(isa, n), bench_moves(isa, n);
    }
  return 0;
}
