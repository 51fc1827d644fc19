// Every path of conv_u8 against plain loops written from docs/engine.md, bit by bit.
//
//   g++ -std=c++17 -O2 -ffp-contract=off -Inative native/tests/conv_u8_test.cc conv_u8_*.o -o conv_u8_test
//
// with the kernel files compiled as CMakeLists.txt says. Shapes are drawn at random, ragged in everything. The input ends 64
// bytes in front of a page that must not be touched (or begins behind one), and the whole output buffer is compared, so that
// a byte written between channels, pixels or rows, or outside of the range, is seen. In front of the random shapes come rows of
// pixels at every small distance, for kernels that load several pixels at once.
//
// Usage: conv_u8_test [cases] [seed]
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/kernels.h"

namespace {

using rw::ConvKernel;
using rw::EpilogueKind;

std::mt19937 generator;

int draw(int lo, int hi) { return lo + static_cast<int>(generator() % static_cast<unsigned>(hi - lo + 1)); }
float draw_float(float lo, float hi) { return lo + (hi - lo) * static_cast<float>(generator() % 65536) / 65535.0f; }

// Memory whose last byte (or first) touches a page without access.
class Fenced {
 public:
  Fenced(size_t bytes, bool at_end) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t inside = (bytes + page - 1) / page * page;
    size_ = inside + 2 * page;
    base_ = static_cast<uint8_t*>(mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + page, inside, PROT_READ | PROT_WRITE) != 0) abort();
    data = at_end ? base_ + page + inside - bytes : base_ + page;
    for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<uint8_t>(generator());
  }
  ~Fenced() { munmap(base_, size_); }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;
  uint8_t* data;

 private:
  uint8_t* base_;
  size_t size_;
};

struct Case {
  rw::ConvShape shape;
  EpilogueKind kind;
  std::vector<int8_t> w;
  std::vector<int32_t> bias, zero, tap;
  std::vector<float> scale, out_scale, poly;
  std::vector<uint8_t> table;
  float poly_b, unary_a, unary_b;
  bool raw = false;  // accumulators as they are, for the fixed-point form
  int lo, hi, unary;
  int out_h, out_w;
  int64_t origin, x_row, x_pixel, y_row, y_pixel, begin, end;
  size_t x_bytes, y_bytes;

  rw::Epilogue epilogue() const {
    return {kind,       bias.data(), nullptr, raw ? nullptr : scale.data(), zero.data(), out_scale.data(), table.data(), poly.data(), poly_b,
            lo,         hi,          unary,   unary_a,      unary_b};
  }
};

void draw_constants(Case& c) {
  const int n = c.shape.n;
  const float spread = std::sqrt(static_cast<float>(c.shape.taps * c.shape.k)) * 9000.0f;
  for (auto& w : c.w) w = static_cast<int8_t>(draw(-127, 127));
  const bool extreme = draw(0, 9) == 0;
  if (extreme)
    for (auto& w : c.w) w = draw(0, 1) ? 127 : -127;
  for (int i = 0; i < n; ++i) {
    c.bias.push_back(draw(-1, 1) * static_cast<int>(spread * draw_float(0.0f, 1.0f)));
    float target = c.kind == EpilogueKind::poly || c.kind == EpilogueKind::real ? 4.0f : c.kind == EpilogueKind::fine ? 400.0f : 100.0f;
    if (draw(0, 15) == 0) target *= 400.0f;  // saturates, int16 as well
    float scale = target / spread * draw_float(0.3f, 1.5f);
    if (draw(0, 3) == 0) scale = std::exp2(std::round(std::log2(scale)));  // ties of the rounding
    c.scale.push_back(scale);
    c.zero.push_back(draw(0, 255));
    c.out_scale.push_back(draw_float(5.0f, 60.0f));
  }
  if (c.kind == EpilogueKind::table)
    for (int i = 1; i < n; ++i) c.zero[i] = c.zero[0];
  if (c.kind == EpilogueKind::fine)
    for (int i = 0; i < n; ++i) c.zero[i] = draw(0, 3) ? draw(0, 1023) : 1023 * draw(0, 1);
  for (int i = 0; i < (c.kind == EpilogueKind::fine ? 1024 : 256); ++i) c.table.push_back(static_cast<uint8_t>(generator()));
  for (int i = 0; i < 96; ++i) c.poly.push_back(draw_float(-1.0f, 1.0f) / static_cast<float>(1 << (i / 32 * 2)));
  c.poly_b = draw_float(0.0f, 31.0f);
  c.raw = c.kind == EpilogueKind::real && draw(0, 1);
  if (c.raw) c.unary = 0;
  if (c.raw)
    for (auto& bias : c.bias) bias = draw(-(1 << 30), 1 << 30);  // no float holds such sums
  c.lo = draw(0, 1) ? 0 : draw(0, 120);
  c.hi = draw(0, 1) ? 255 : draw(130, 255);
}

Case draw_case() {
  Case c;
  c.kind = static_cast<EpilogueKind>(draw(0, 4));
  const int cin = draw(0, 3) == 0 ? draw(1, 200) : draw(0, 2) == 0 ? draw(1, 16) : 4 * draw(1, 20);
  const int kh = draw(1, 7), kw = cin > 40 ? draw(1, 2) : draw(1, 7), stride = draw(1, 3);
  const bool point = draw(0, 2) == 0;  // 1x1
  const int rows = point ? 1 : kh, columns = point ? 1 : kw;
  const int gap = draw(0, 1) ? 0 : draw(0, 20);  // bytes between pixels
  const bool merged = !point && gap == 0 && draw(0, 1);
  const int dilation = merged ? 1 : draw(1, 2);
  const int pixel = cin + gap;
  c.shape.taps = merged ? rows : rows * columns;
  c.shape.k = merged ? columns * cin : cin;
  c.shape.n = draw(0, 3) == 0 ? 16 * draw(1, 8) : draw(0, 2) == 0 ? draw(1, 16) : draw(1, 130);
  c.shape.out_float = c.kind == EpilogueKind::real;
  c.out_w = draw(1, 40), c.out_h = draw(1, 6);
  while (static_cast<int64_t>(c.out_w) * c.out_h * c.shape.taps * c.shape.k * c.shape.n > 6000000 && c.out_h * c.out_w > 1)
    c.out_h > 1 ? --c.out_h : --c.out_w;
  const int in_w = (c.out_w - 1) * stride + (columns - 1) * dilation + 1;
  const int64_t in_row = static_cast<int64_t>(in_w) * pixel + (draw(0, 1) ? 0 : draw(0, 30));
  c.x_row = in_row * stride, c.x_pixel = pixel * stride;
  for (int y = 0; y < rows; ++y)
    for (int x = 0; x < (merged ? 1 : columns); ++x)
      c.tap.push_back(static_cast<int32_t>(y * dilation * in_row + x * dilation * pixel));
  c.x_bytes = 0;
  const int64_t last = (c.out_h - 1) * c.x_row + (c.out_w - 1) * c.x_pixel + c.tap.back() + c.shape.k;
  c.x_bytes = static_cast<size_t>(last);
  // Taps count from anywhere, as they do where padding lies in front of the image.
  c.origin = draw(0, 1) ? 0 : draw(0, static_cast<int>(c.tap.back()));
  for (auto& t : c.tap) t -= static_cast<int32_t>(c.origin);
  const int64_t element = c.shape.out_float ? 4 : 1;
  c.y_pixel = c.shape.n * element + (draw(0, 1) ? 0 : element * draw(1, 20));
  c.y_row = c.out_w * c.y_pixel + (draw(0, 1) ? 0 : element * draw(1, 50));
  c.y_bytes = static_cast<size_t>(c.y_row * c.out_h);
  const int64_t pixels = static_cast<int64_t>(c.out_w) * c.out_h;
  c.begin = draw(0, 2) == 0 ? draw(0, static_cast<int>(pixels) - 1) : 0;
  c.end = draw(0, 2) == 0 ? draw(static_cast<int>(c.begin), static_cast<int>(pixels)) : pixels;
  c.w.resize(static_cast<size_t>(c.shape.n) * c.shape.taps * c.shape.k);
  c.unary = draw(0, 1) ? 0 : draw(0, 9), c.unary_a = draw_float(-0.5f, 0.4f), c.unary_b = draw_float(0.4f, 1.5f);
  draw_constants(c);
  return c;
}

// One row of pixels at any small distance, which ends where reading must end.
Case draw_close(int pixel, int k) {
  Case c;
  c.kind = static_cast<EpilogueKind>(draw(0, 3) == 3 ? 4 : draw(0, 2));
  c.shape = {1, k, draw(0, 1) ? 16 : draw(1, 40), false};
  c.out_w = draw(8, 40), c.out_h = 1;
  c.tap = {0};
  c.origin = 0, c.x_pixel = pixel, c.x_row = static_cast<int64_t>(c.out_w) * pixel;
  c.x_bytes = static_cast<size_t>((c.out_w - 1) * c.x_pixel + k);
  c.y_pixel = c.shape.n + draw(0, 1) * draw(1, 9), c.y_row = c.out_w * c.y_pixel;
  c.y_bytes = static_cast<size_t>(c.y_row);
  c.begin = 0, c.end = c.out_w;
  c.w.resize(static_cast<size_t>(c.shape.n) * k);
  c.unary = 0, c.unary_a = 0.0f, c.unary_b = 0.0f;
  draw_constants(c);
  return c;
}

// The float32 sequences of docs/engine.md, one rounding per operation.
float exp_sequence(float x) {
  x = std::fmin(std::fmax(x, -87.0f), 88.0f);
  const float k = std::nearbyint(x * 1.44269504f);
  float r = x - k * 0.693359375f;
  r = r - k * -2.12194440e-4f;
  float p = 8.289708e-3f;
  for (const float c : {4.189783e-2f, 1.6667648e-1f, 4.999915e-1f, 9.999997e-1f, 1.0f}) {
    p = p * r;
    p = p + c;
  }
  return std::ldexp(p, static_cast<int>(k));
}

float sigmoid_sequence(float x) { return 1.0f / (1.0f + exp_sequence(-x)); }

float unary_sequence(int function, float x, float a, float b) {
  switch (function) {
    case 1: return std::fmax(x, 0.0f);
    case 2: return std::fmin(std::fmax(x, a), b);
    case 3: return x > 0.0f ? x : x * a;
    case 4: return sigmoid_sequence(x);
    case 5: return x / (1.0f + exp_sequence(-x));
    case 6: return std::fmin(std::fmax(x * a + b, 0.0f), 1.0f);
    case 7: return x * std::fmin(std::fmax(x * 0.16666667f + 0.5f, 0.0f), 1.0f);
    case 8: return 2.0f * sigmoid_sequence(2.0f * x) - 1.0f;
    case 9: return exp_sequence(x);
    default: return x;
  }
}

float exact_rint(float x) { return std::nearbyint(x); }

int saturate(float rounded, int zero, int lo, int hi) {
  const double q = static_cast<double>(rounded) + zero;
  return static_cast<int>(q < lo ? lo : q > hi ? hi : q);
}

void expect_value(const Case& c, int n, int32_t acc, uint8_t* y) {
  const float v = static_cast<float>(acc) * c.scale[n];
  if (c.raw) {
    memcpy(y, &acc, 4);
  } else if (c.kind == EpilogueKind::real) {
    const float u = unary_sequence(c.unary, v, c.unary_a, c.unary_b);
    memcpy(y, &u, 4);
  } else if (c.kind == EpilogueKind::linear) {
    *y = static_cast<uint8_t>(saturate(exact_rint(v), c.zero[n], c.lo, c.hi));
  } else if (c.kind == EpilogueKind::table) {
    *y = c.table[saturate(exact_rint(v), c.zero[n], 0, 255)];
  } else if (c.kind == EpilogueKind::fine) {
    const double q = static_cast<double>(exact_rint(v)) + c.zero[n];
    *y = c.table[static_cast<int>(std::fmin(std::fmax(q, 0.0), 1023.0))];
  } else {
    float t = v + c.poly_b;
    t = std::fmin(std::fmax(t, 0.0f), 31.0f);
    const int i = static_cast<int>(t);
    float f = c.poly[64 + i] * v;
    f = f + c.poly[32 + i];
    f = f * v;
    f = f + c.poly[i];
    *y = static_cast<uint8_t>(saturate(exact_rint(f * c.out_scale[n]), c.zero[n], 0, 255));
  }
}

void expect(const Case& c, const uint8_t* x, std::vector<uint8_t>& y) {
  const int64_t element = c.shape.out_float ? 4 : 1;
  for (int64_t m = c.begin; m < c.end; ++m) {
    const int64_t i = m / c.out_w, j = m % c.out_w;
    for (int n = 0; n < c.shape.n; ++n) {
      int32_t acc = c.bias[n];
      for (int t = 0; t < c.shape.taps; ++t) {
        const uint8_t* p = x + i * c.x_row + j * c.x_pixel + c.tap[t];
        const int8_t* w = c.w.data() + (static_cast<size_t>(n) * c.shape.taps + t) * c.shape.k;
        for (int k = 0; k < c.shape.k; ++k) acc += static_cast<int>(p[k]) * w[k];
      }
      expect_value(c, n, acc, y.data() + i * c.y_row + j * c.y_pixel + n * element);
    }
  }
}

bool check(const ConvKernel& kernel, const char* name, const Case& c, const uint8_t* x, const std::vector<uint8_t>& expected) {
  const size_t bytes = kernel.packed_bytes(c.shape), rounded = (bytes + 63) / 64 * 64;
  auto* packed = static_cast<uint8_t*>(aligned_alloc(64, rounded + 64));
  memset(packed, 0x5a, rounded + 64);
  const rw::Epilogue e = c.epilogue();
  kernel.pack(c.shape, {c.w.data(), e}, packed);
  bool good = true;
  for (size_t i = bytes; i < rounded + 64; ++i) good = good && packed[i] == 0x5a;
  if (!good) printf("%s: pack() wrote behind packed_bytes\n", name);
  std::vector<uint8_t> y(c.y_bytes, 0xa5);
  const rw::ConvRun run = {x, c.x_row, c.x_pixel, c.tap.data(), packed, y.data(), c.y_row, c.y_pixel, c.out_w};
  kernel.run(c.shape, run, c.begin, c.end);
  free(packed);
  for (size_t i = 0; i < y.size() && good; ++i)
    if (y[i] != expected[i]) {
      const int64_t row = static_cast<int64_t>(i) / c.y_row, rest = static_cast<int64_t>(i) % c.y_row;
      printf("%s: byte %zu (row %lld, pixel %lld, byte %lld of it) is %d, not %d\n", name, i, static_cast<long long>(row),
             static_cast<long long>(rest / c.y_pixel), static_cast<long long>(rest % c.y_pixel), y[i], expected[i]);
      good = false;
    }
  if (!good)
    printf("  taps %d, k %d, n %d, epilogue %d, output %d x %d, pixels %lld to %lld, x %lld %lld, y %lld %lld\n", c.shape.taps,
           c.shape.k, c.shape.n, static_cast<int>(c.kind), c.out_h, c.out_w, static_cast<long long>(c.begin),
           static_cast<long long>(c.end), static_cast<long long>(c.x_row), static_cast<long long>(c.x_pixel),
           static_cast<long long>(c.y_row), static_cast<long long>(c.y_pixel));
  return good;
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? atoi(argv[1]) : 1500;
  generator.seed(argc > 2 ? static_cast<unsigned>(atoi(argv[2])) : 1);
  struct Path {
    const char* name;
    const ConvKernel* kernel;
  };
  std::vector<Path> paths = {{"portable", &rw::conv_u8_portable}};
#if defined(ROADWORTHY_X86)
  if (__builtin_cpu_supports("avx2")) paths.push_back({"avx2", &rw::conv_u8_avx2});
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi"))
    paths.push_back({"avx512vnni", &rw::conv_u8_avx512vnni});
#endif
  int bad = 0;
  long long outputs = 0;
  constexpr int kClose = 40 * 40;  // pixels 1 to 40 bytes apart, taps of 1 to 40
  for (int i = 0; i < kClose + cases && bad < 10; ++i) {
    const Case c = i < kClose ? draw_close(i / 40 + 1, i % 40 + 1) : draw_case();
    const bool at_end = i < kClose || draw(0, 2) != 0;
    const Fenced x(c.x_bytes + 64, at_end);
    std::vector<uint8_t> expected(c.y_bytes, 0xa5);
    const uint8_t* origin = x.data + c.origin;
    expect(c, origin, expected);
    for (const Path& path : paths)
      if (!check(*path.kernel, path.name, c, origin, expected)) ++bad;
    outputs += (c.end - c.begin) * c.shape.n;
  }
  printf("conv_u8: %d cases, %lld outputs, paths:", kClose + cases, outputs);
  for (const Path& path : paths) printf(" %s", path.name);
  printf(": %s\n", bad ? "FAILED" : "all equal");
  return bad ? 1 : 0;
}
