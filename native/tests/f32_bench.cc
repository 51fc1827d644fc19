// Micro-benchmark of the float kernels, one thread: f32_bench [portable|avx2|avx512vnni]. Each figure is the best and the median of
// many runs; the peak is measured in between by independent multiply-adds, because the machine's own speed wanders.
#include <algorithm>
#include <chrono>
#include <string>

#include "f32_testing.h"

using namespace testing;

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Time { double best, median; };

template <class F> Time measure(F f) {
  std::vector<double> times;
  f();
  const double start = now();
  for (int i = 0; i < 400 && (i < 15 || now() - start < 0.25); i++) {
    const double begin = now();
    f();
    times.push_back(now() - begin);
  }
  std::sort(times.begin(), times.end());
  return {times[0], times[times.size() / 2]};
}

double peak = 1;  // FLOP/s

#if defined(ROADWORTHY_X86)
__attribute__((target("avx512f"), noinline)) void burn512(int n) {
  for (int i = 0; i < n; i++)
    asm volatile("vfmadd231ps %%zmm30,%%zmm31,%%zmm0\n vfmadd231ps %%zmm30,%%zmm31,%%zmm1\n vfmadd231ps %%zmm30,%%zmm31,%%zmm2\n"
                 "vfmadd231ps %%zmm30,%%zmm31,%%zmm3\n vfmadd231ps %%zmm30,%%zmm31,%%zmm4\n vfmadd231ps %%zmm30,%%zmm31,%%zmm5\n"
                 "vfmadd231ps %%zmm30,%%zmm31,%%zmm6\n vfmadd231ps %%zmm30,%%zmm31,%%zmm7\n vfmadd231ps %%zmm30,%%zmm31,%%zmm8\n"
                 "vfmadd231ps %%zmm30,%%zmm31,%%zmm9" ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9");
}
void find_peak() {
  if (!__builtin_cpu_supports("avx512f")) return;
  peak = 10.0 * 32 * 100000 / measure([] { burn512(100000); }).best;
}
#else
void find_peak() {}
#endif

bool quiet = false;

void line(const char* what, double flops, Time t) {
  if (quiet) return;
  printf("%-34s %9.1f us (median %9.1f)  %7.1f GFLOP/s  %4.2f of peak\n", what, t.best * 1e6, t.median * 1e6, flops / t.best / 1e9, flops / t.best / peak);
  fflush(stdout);
}

struct Floats {
  explicit Floats(size_t n) : memory(n * sizeof(float) + 4096), p(static_cast<float*>(memory.get())) {
    Random random;
    for (size_t i = 0; i < n; i++) p[i] = random.real(-1, 1);
  }
  Aligned memory;
  float* p;
};

double conv(const rw::Kernels& k, int h, int w, int cin, int n, int kernel, int stride, int unary, bool merged) {
  const int in_h = (h - 1) * stride + kernel, in_w = (w - 1) * stride + kernel;
  Floats x(static_cast<size_t>(in_h) * in_w * cin), weights(static_cast<size_t>(n) * kernel * kernel * cin), bias(n), y(static_cast<size_t>(h) * w * n);
  const rw::ConvShape shape = {merged ? kernel : kernel * kernel, merged ? kernel * cin : cin, n, true};
  rw::ConvWeights cw = {};
  cw.w = weights.p, cw.e.kind = rw::EpilogueKind::real, cw.e.float_bias = bias.p, cw.e.unary = unary;
  Aligned packed(k.conv_f32.packed_bytes(shape));
  k.conv_f32.pack(shape, cw, packed.get());
  std::vector<int32_t> tap;
  for (int r = 0; r < kernel; r++)
    for (int q = 0; q < (merged ? 1 : kernel); q++) tap.push_back(4 * (r * in_w + q) * cin);
  const rw::ConvRun run = {reinterpret_cast<uint8_t*>(x.p), 4ll * in_w * cin * stride, 4ll * cin * stride, tap.data(), packed.get(), y.p, 4ll * w * n, 4ll * n, w};
  const Time t = measure([&] { k.conv_f32.run(shape, run, 0, static_cast<int64_t>(h) * w); });
  char text[80];
  snprintf(text, sizeof text, "conv %dx%d s%d %3d->%-3d @%d%s", kernel, kernel, stride, cin, n, w, unary == 5 ? " silu" : unary ? " relu" : "");
  line(text, 2.0 * h * w * n * kernel * kernel * cin, t);
  return t.best;
}

double depthwise(const rw::Kernels& k, int size, int c, int kernel, int stride, int unary) {
  const int in = (size - 1) * stride + kernel;
  Floats x(static_cast<size_t>(in) * in * c), weights(static_cast<size_t>(kernel) * kernel * c), bias(c), y(static_cast<size_t>(size) * size * c);
  const rw::DepthwiseShape shape = {kernel, kernel, stride, stride, 1, 1, c, true};
  rw::ConvWeights cw = {};
  cw.w = weights.p, cw.e.kind = rw::EpilogueKind::real, cw.e.float_bias = bias.p, cw.e.unary = unary;
  Aligned packed(k.depthwise_f32.packed_bytes(shape));
  k.depthwise_f32.pack(shape, cw, packed.get());
  const rw::DepthwiseRun run = {reinterpret_cast<uint8_t*>(x.p), 4ll * in * c, 4ll * c, packed.get(), y.p, 4ll * size * c, 4ll * c, size, size};
  const Time t = measure([&] { k.depthwise_f32.run(shape, run, 0, size); });
  char text[80];
  snprintf(text, sizeof text, "depthwise %dx%d s%d %3d @%d%s", kernel, kernel, stride, c, size, unary == 5 ? " silu" : "");
  line(text, 2.0 * size * size * c * kernel * kernel, t);
  return t.best;
}

double winograd(const rw::WinogradKernel& k, int size, int cin, int cout) {
  const int in = size + 2;
  Floats x(static_cast<size_t>(in) * in * cin), weights(static_cast<size_t>(cout) * 9 * cin), bias(cout), y(static_cast<size_t>(size) * size * cout);
  const rw::WinogradShape shape = {cin, cout, size, size};
  rw::ConvWeights cw = {};
  cw.w = weights.p, cw.e.kind = rw::EpilogueKind::real, cw.e.float_bias = bias.p, cw.e.unary = 1;
  Aligned packed(k.packed_bytes(shape)), scratch(k.scratch_bytes(shape));
  k.pack(shape, cw, packed.get());
  const rw::WinogradRun run = {x.p, 4ll * in * cin, 4ll * cin, packed.get(), y.p, 4ll * size * cout, 4ll * cout, scratch.get()};
  const int64_t across = (size + k.tile - 1) / k.tile;
  const Time t = measure([&] { k.run(shape, run, 0, across * across); });
  char text[80];
  snprintf(text, sizeof text, "winograd %d %3d->%-3d @%d", k.tile, cin, cout, size);
  line(text, 2.0 * size * size * 9 * cin * cout, t);
  return t.best;
}

// What winograd_tile in ops/conv.cc is written from: 3x3, stride 1, the direct sum and both tiles.
void rule(const rw::Kernels& k) {
  quiet = true;
  const int channels[] = {16, 32, 64, 96, 128, 256, 512}, sizes[] = {104, 52, 26, 13, 7, 5, 4};
  for (int size : sizes)
    for (int c : channels)
      for (int cout : {c, 2 * c}) {
        if (cout > c && (c > 128 || size > 52)) continue;
        if (cout > 512 || (size == 104 && c > 256)) continue;
        const double direct = conv(k, size, size, c, cout, 3, 1, 1, false), two = winograd(k.winograd2_f32, size, c, cout), four = winograd(k.winograd4_f32, size, c, cout);
        printf("%3d -> %3d at %3d: direct %9.1f us, F2 %9.1f us (%.2f times as fast), F4 %9.1f us (%.2f)\n", c, cout, size, direct * 1e6, two * 1e6,
               direct / two, four * 1e6, direct / four);
        fflush(stdout);
      }
}

// All convolutions of YOLOX-Nano at 416 x 416: how often, cin, cout (or channels), output size, stride.
void network(const rw::Kernels& k) {
  const int pointwise[][4] = {{2, 16, 16, 104}, {1, 16, 32, 104}, {2, 32, 16, 104}, {8, 32, 32, 52}, {1, 32, 32, 104}, {1, 32, 64, 52}, {2, 64, 32, 52},
                              {4, 64, 64, 13}, {15, 64, 64, 26}, {7, 64, 64, 52}, {1, 64, 128, 26}, {2, 128, 32, 52}, {6, 128, 64, 26}, {5, 128, 128, 13},
                              {3, 128, 128, 26}, {1, 128, 256, 13}, {1, 256, 64, 13}, {2, 256, 64, 26}, {6, 256, 128, 13}, {2, 256, 256, 13}, {1, 512, 256, 13}};
  const int heads[][4] = {{1, 64, 1, 13}, {1, 64, 1, 26}, {1, 64, 1, 52}, {1, 64, 4, 13}, {1, 64, 4, 26}, {1, 64, 4, 52}, {1, 64, 80, 13}, {1, 64, 80, 26}, {1, 64, 80, 52}};
  const int depthwise_layers[][4] = {{1, 16, 104, 1}, {4, 32, 52, 1}, {4, 64, 13, 1}, {9, 64, 26, 1}, {4, 64, 52, 1}, {2, 128, 13, 1},
                                     {1, 16, 104, 2}, {1, 32, 52, 2}, {2, 64, 26, 2}, {2, 128, 13, 2}};
  for (int unary : {0, 5}) {
    double dense = 0, deep = 0;
    for (const auto& s : pointwise) dense += s[0] * conv(k, s[3], s[3], s[1], s[2], 1, 1, unary, false);
    for (const auto& s : heads) dense += s[0] * conv(k, s[3], s[3], s[1], s[2], 1, 1, 0, false);
    for (const auto& s : depthwise_layers) deep += s[0] * depthwise(k, s[2], s[1], 3, s[3], unary);
    const double stem = conv(k, 208, 208, 12, 16, 3, 1, unary, true);
    printf("YOLOX-Nano, sums of the best times%s: pointwise %.0f us, depthwise %.0f us, stem %.0f us, together %.0f us\n",
           unary ? " with SiLU" : "", dense * 1e6, deep * 1e6, stem * 1e6, (dense + deep + stem) * 1e6);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string wanted = argc > 1 ? argv[1] : name(paths().back());
  const std::string only = argc > 2 ? argv[2] : "";
  for (rw::Isa isa : paths()) {
    if (wanted != name(isa)) continue;
    const rw::Kernels& k = rw::kernels(isa);
    find_peak();
    if (only == "rule") {
      rule(k);
      continue;
    }
    if (only == "yolox") {
      network(k);
      continue;
    }
    printf("%s; measured peak %.0f GFLOP/s\n", name(isa), peak / 1e9);
    if (only.empty() || only == "conv") {
      const int pointwise[][3] = {{208, 16, 16}, {104, 32, 16}, {104, 16, 32}, {104, 32, 32}, {52, 64, 64}, {52, 32, 64}, {52, 64, 32},
                                  {52, 128, 64}, {26, 128, 128}, {26, 256, 128}, {26, 128, 256}, {13, 256, 256}, {13, 512, 256}, {13, 1024, 256},
                                  {52, 64, 80}, {80, 64, 64}, {40, 128, 128}, {20, 256, 256}, {7, 960, 320}};
      for (const auto& s : pointwise)
        for (int unary : {0, 5}) conv(k, s[0], s[0], s[1], s[2], 1, 1, unary, false);
      for (int unary : {0, 5}) {
        conv(k, 208, 208, 12, 16, 3, 1, unary, true);
        conv(k, 208, 208, 3, 16, 6, 2, unary, true);
        conv(k, 208, 208, 3, 32, 3, 2, unary, true);
      }
      conv(k, 52, 52, 64, 64, 3, 1, 1, false);
      conv(k, 26, 26, 128, 128, 3, 1, 1, false);
      conv(k, 13, 13, 256, 256, 3, 1, 1, false);
    }
    find_peak();
    if (only.empty() || only == "depthwise")
      for (int unary : {0, 5}) {
        const int layers[][4] = {{104, 16, 3, 2}, {104, 16, 3, 1}, {52, 32, 3, 2}, {52, 32, 3, 1}, {52, 64, 3, 1}, {26, 64, 3, 1}, {26, 128, 3, 1}, {13, 128, 3, 1}, {13, 256, 3, 1},
                                 {52, 64, 5, 1}, {52, 64, 5, 2}, {26, 120, 5, 1}};
        for (const auto& s : layers) depthwise(k, s[0], s[1], s[2], s[3], unary);
      }
    find_peak();
    if (only.empty() || only == "winograd") {
      const int shapes[][3] = {{104, 64, 64}, {52, 64, 64}, {52, 128, 128}, {26, 128, 128}, {26, 256, 256}, {13, 256, 256}, {13, 512, 512}};
      for (const auto& s : shapes)
        for (const rw::WinogradKernel* w : {&k.winograd2_f32, &k.winograd4_f32}) winograd(*w, s[0], s[1], s[2]);
    }
    find_peak();
    if (only.empty() || only == "unary") {
      Floats x(16384), y(16384);
      const int used[] = {1, 4, 5, 7, 8, 9, 10, 11, 12, 13, 19, 21};
      for (int f : used) {
        const Time t = measure([&] { for (int i = 0; i < 20; i++) k.unary_f32(x.p, y.p, 16384, f, 0.5f, 1); });
        printf("unary %-2d %24s %9.3f ns per 16 values\n", f, "", t.best * 1e9 / 20 / 1024);
      }
      const Time t = measure([&] { for (int i = 0; i < 20; i++) k.softmax_f32(x.p, y.p, 16384); });
      printf("softmax %25s %9.3f ns per 16 values\n", "", t.best * 1e9 / 20 / 1024);
    }
  }
  return 0;
}
