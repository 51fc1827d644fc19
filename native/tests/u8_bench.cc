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
const Layer others[] = {{56, 24, 1, 1}, {56, 96, 1, 1}, {28, 116, 1, 1}, {28, 144, 1, 1}, {28, 58, 1, 1}, {112, 32, 1, 1}};

Times depthwise(rw::Isa isa, const Layer& l, int k, rw::EpilogueKind kind, int repeats) {
  const rw::DepthwiseShape s = {k, k, l.stride, l.stride, 1, 1, l.c, kind == rw::EpilogueKind::real};
  const rw::DepthwiseKernel& kernel = depthwise_u8_on(isa);
  const size_t c = static_cast<size_t>(l.c);
  std::vector<int8_t> w(c * k * k);
  for (auto& v : w) v = static_cast<int8_t>(draw(-127, 127));
  std::vector<int32_t> bias(c, 100), zero(c, 128);
  std::vector<float> scale(c, kind == rw::EpilogueKind::poly ? 1e-4f : 2e-3f), out_scale(c, 20.0f), poly(96, 0.5f);
  std::vector<uint8_t> table(256, 7);
  const rw::Epilogue e = {kind, bias.data(), nullptr, scale.data(), zero.data(), out_scale.data(), table.data(), poly.data(), 1.0f, 16.0f, 0, 255, 0, 0, 0};
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
    for (const auto kind : {rw::EpilogueKind::linear, rw::EpilogueKind::table, rw::EpilogueKind::poly}) {
      const char* names[] = {"linear", "table", "poly", "real"};
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

}  // namespace

int main(int argc, char** argv) {
  const char* what = argc > 1 ? argv[1] : "all";
  const int repeats = argc > 2 ? atoi(argv[2]) : 500;
  if (std::strcmp(what, "other") != 0) bench_depthwise(repeats);
  return 0;
}
