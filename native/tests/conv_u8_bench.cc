// How close conv_u8 comes to the peak of vpdpbusd, per shape and epilogue, on one thread.
//
// Built like conv_u8_test.cc. A sample is one pass over the image. In front of each stands a short loop of nothing but vpdpbusd:
// the peak at that moment (0 where the CPU has none). The figure of a shape is the median of the samples;
// "best" the fastest one; the fraction is that of the medians. `portable` and `avx2` as first argument time these paths.
//
// Usage: conv_u8_bench [path] [part of a shape's name]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace {

double now_us() {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

#if defined(ROADWORTHY_X86)
// Giga-operations per second of independent vpdpbusd.
double peak_gops() {
  if (!__builtin_cpu_supports("avx512vnni")) return 0.0;
  constexpr long kRounds = 4000;
  const double begin = now_us();
  for (long i = 0; i < kRounds; ++i)
    asm volatile(
        "vpdpbusd %%zmm0, %%zmm0, %%zmm1\n vpdpbusd %%zmm0, %%zmm0, %%zmm2\n vpdpbusd %%zmm0, %%zmm0, %%zmm3\n"
        "vpdpbusd %%zmm0, %%zmm0, %%zmm4\n vpdpbusd %%zmm0, %%zmm0, %%zmm5\n vpdpbusd %%zmm0, %%zmm0, %%zmm6\n"
        "vpdpbusd %%zmm0, %%zmm0, %%zmm7\n vpdpbusd %%zmm0, %%zmm0, %%zmm8\n vpdpbusd %%zmm0, %%zmm0, %%zmm9\n"
        "vpdpbusd %%zmm0, %%zmm0, %%zmm10\n vpdpbusd %%zmm0, %%zmm0, %%zmm11\n vpdpbusd %%zmm0, %%zmm0, %%zmm12\n" ::
            : "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12");
  return kRounds * 12.0 * 128.0 / (now_us() - begin) / 1e3;
}
#else
double peak_gops() { return 0.0; }
#endif

struct Shape {
  const char* name;
  int kernel, stride, cin, n, out;  // square; the input has a border
  int gap = 0;                      // pixels between the rows of the output: its border
};

const Shape kShapes[] = {
    {"1x1 16->16 @104", 1, 1, 16, 16, 104},     {"1x1 32->16 @104", 1, 1, 32, 16, 104},
    {"1x1 32->32 @104", 1, 1, 32, 32, 104},     {"1x1 64->32 @52", 1, 1, 64, 32, 52},
    {"1x1 64->64 @52", 1, 1, 64, 64, 52},       {"1x1 128->64 @52", 1, 1, 128, 64, 52},
    {"1x1 128->128 @26", 1, 1, 128, 128, 26},   {"1x1 256->256 @26", 1, 1, 256, 256, 26},
    {"1x1 512->512 @13", 1, 1, 512, 512, 13},   {"1x1 48->48 @52", 1, 1, 48, 48, 52},
    {"1x1 96->24 @52", 1, 1, 96, 24, 52},       {"1x1 64->80 @52", 1, 1, 64, 80, 52},
    {"1x1 64->85 @52", 1, 1, 64, 85, 52},       {"1x1 576->160 @13", 1, 1, 576, 160, 13},
    {"3x3 16->16 @104", 3, 1, 16, 16, 104},     {"3x3 32->32 @104", 3, 1, 32, 32, 104},
    {"3x3 64->64 @104", 3, 1, 64, 64, 104},     {"3x3 128->128 @52", 3, 1, 128, 128, 52},
    {"3x3 256->256 @26", 3, 1, 256, 256, 26},   {"3x3 512->512 @13", 3, 1, 512, 512, 13},
    {"stem 6x6/2 3->16 @208", 6, 2, 3, 16, 208}, {"stem 3x3/2 3->32 @112", 3, 2, 3, 32, 112},
    {"1x1 256->256 @13, gap", 1, 1, 256, 256, 13, 2}, {"1x1 64->64 @52, gap", 1, 1, 64, 64, 52, 2},
    {"1x1 64->16 @52", 1, 1, 64, 16, 52},       {"1x1 64->4 @52", 1, 1, 64, 4, 52},
    {"1x1 960->160 @7", 1, 1, 960, 160, 7},     {"fc 768->1000", 1, 1, 768, 1000, 1},
};

std::mt19937 generator(1);

struct Bench {
  std::vector<uint8_t> x;
  std::vector<int8_t> w;
  std::vector<int32_t> bias, zero, tap;
  std::vector<float> scale, out_scale, poly;
  std::vector<uint8_t> table, y;
  uint8_t* packed = nullptr;
  rw::ConvShape shape;
  rw::ConvRun run;

  Bench(const rw::ConvKernel& kernel, const Shape& s, rw::EpilogueKind kind) {
    const bool merged = s.kernel > 1;
    shape = {s.kernel, merged ? s.kernel * s.cin : s.cin, s.n, kind == rw::EpilogueKind::real};
    const int64_t in = static_cast<int64_t>(s.out - 1) * s.stride + s.kernel, row = in * s.cin;
    x.resize(static_cast<size_t>(in * row) + 64);
    for (auto& v : x) v = static_cast<uint8_t>(generator());
    w.resize(static_cast<size_t>(s.n) * shape.taps * shape.k);
    for (auto& v : w) v = static_cast<int8_t>(static_cast<int>(generator() % 255) - 127);
    for (int t = 0; t < shape.taps; ++t) tap.push_back(static_cast<int32_t>(t * row));
    bias.assign(s.n, 100), zero.assign(s.n, 128), scale.assign(s.n, 1e-4f), out_scale.assign(s.n, 10.0f);
    poly.assign(96, 0.1f), table.resize(1024);
    for (int i = 0; i < 1024; ++i) table[i] = static_cast<uint8_t>(i);
    const int64_t pixel = s.n * (shape.out_float ? 4 : 1);
    const int64_t y_row = (s.out + s.gap) * pixel;
    y.resize(static_cast<size_t>(s.out * y_row) + 64);
    packed = static_cast<uint8_t*>(aligned_alloc(64, (kernel.packed_bytes(shape) + 63) / 64 * 64));
    const rw::Epilogue e = {kind,        bias.data(), nullptr, scale.data(), zero.data(), out_scale.data(), table.data(),
                            poly.data(), 15.0f,       0,       255,          0,           0.0f,             0.0f};
    kernel.pack(shape, {w.data(), e}, packed);
    auto* aligned = y.data() + (64 - reinterpret_cast<uintptr_t>(y.data()) % 64) % 64;
    run = {x.data(), row * s.stride, s.cin * s.stride, tap.data(), packed, aligned, y_row, pixel, s.out};
  }
  ~Bench() { free(packed); }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;
};

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
  return v[v.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const std::string path = argc > 1 ? argv[1] : "avx512vnni", part = argc > 2 ? argv[2] : "";
  const rw::ConvKernel* kernel = &rw::conv_u8_portable;
#if defined(ROADWORTHY_X86)
  if (path == "avx2") kernel = &rw::conv_u8_avx2;
  if (path == "avx512vnni") kernel = &rw::conv_u8_avx512vnni;
#endif
  printf("%s, us median (best), fraction of the vpdpbusd peak\n%-22s %26s %26s %26s %26s %26s\n", path.c_str(), "shape", "LINEAR",
         "TABLE", "POLY", "REAL", "FINE");
  for (const Shape& s : kShapes) {
    if (std::string(s.name).find(part) == std::string::npos) continue;
    const double ops = 2.0 * s.kernel * s.kernel * s.cin * s.n * s.out * s.out;
    printf("%-22s", s.name);
    for (int kind = 0; kind < 5; ++kind) {
      Bench b(*kernel, s, static_cast<rw::EpilogueKind>(kind));
      std::vector<double> times, peaks;
      const double begin = now_us();
      while (times.size() < 15 || (now_us() - begin < 120e3 && times.size() < 2000)) {
        peaks.push_back(peak_gops());
        const double t = now_us();
        kernel->run(b.shape, b.run, 0, static_cast<int64_t>(s.out) * s.out);
        times.push_back(now_us() - t);
      }
      const double m = median(times), best = *std::min_element(times.begin(), times.end());
      printf("   %8.1f (%8.1f) %.3f", m, best, ops / m / 1e3 / median(peaks));
    }
    printf("\n");
  }
}
