// Every path of the fixed-point kernels against formulas written from docs/engine.md ("Fixed point"), in integers of 128 bits
// and divisions that round down instead of shifts.
//
// Multipliers and shifts are drawn over their whole range, with sums up to the ends of int32 and at exact halves. Outputs end in
// front of a forbidden page and are compared whole: a byte between pixels, rows or outside of the range is seen.
//
// Usage: fixed_u8_test [rounds] [seed]
#include <algorithm>

#include "u8_images.h"

namespace {

using namespace rw_test;
using rw::FixedKind;
__extension__ typedef __int128 Wide;

// The largest integer that is not above a / 2^s.
Wide floor_shift(Wide a, int s) {
  const Wide d = Wide{1} << s, q = a / d;
  return q * d > a ? q - 1 : q;
}

Wide scaled(int64_t v, int32_t m, int s) { return floor_shift(Wide{v} * m + (Wide{1} << (s - 1)), s); }
int clamped(Wide v, int lo, int hi) { return v < lo ? lo : v > hi ? hi : static_cast<int>(v); }

int32_t draw_wide() { return static_cast<int32_t>(source()()); }
int32_t draw_multiplier() { return draw(0, 7) ? draw(1 << 30, INT32_MAX) : draw(0, 1) ? 1 << 30 : INT32_MAX; }

struct Scales {
  std::vector<int32_t> m, s;
  // Shifts that bring values of `bits` bits to some 8; now and then any, or the smallest multipliers.
  Scales(int n, int bits) {
    const bool any = draw(0, 3) == 0;
    for (int i = 0; i < n; ++i) {
      m.push_back(draw_multiplier());
      s.push_back(any && draw(0, 3) == 0 ? draw(2, 62) : std::min(62, 31 + bits - 8 + draw(-1, 2)));
      if (s.back() == 62) m.back() = draw(0, 2) ? draw(0, INT32_MAX) : 0;
    }
  }
};

std::vector<int32_t> draws(int n, int lo, int hi) {
  std::vector<int32_t> v;
  for (int i = 0; i < n; ++i) v.push_back(draw(lo, hi));
  return v;
}

void test_epilogue() {
  const auto kind = static_cast<FixedKind>(draw(0, 2));
  const bool curve = kind == FixedKind::curve;
  const int n = draw_channels(), pixels = draw(0, 9), bits = draw(9, 31);
  const Scales first(n, curve ? std::max(bits - 8, 9) : bits), second(n, 22);
  const auto zero = curve ? draws(n, -32768, 32767) : draws(n, 0, 255), zero2 = draws(n, 0, 255);
  const auto table = draws(256, 0, 255);
  const std::vector<uint8_t> codes(table.begin(), table.end());
  std::vector<int16_t> values;
  for (int i = 0; i < rw::kCurveEntries; ++i) values.push_back(static_cast<int16_t>(draw(0, 9) ? draw(-32767, 32767) : draw(0, 1) ? 32767 : -32768));
  const int lo = draw(0, 1) ? 0 : draw(0, 120), hi = draw(0, 1) ? 255 : draw(130, 255);
  const rw::FixedEpilogue e = {kind, n, first.m.data(), first.s.data(), zero.data(), second.m.data(), second.s.data(), zero2.data(), codes.data(), values.data(), lo, hi};

  const Fenced memory(static_cast<size_t>(pixels) * n * 4);
  std::vector<int32_t> acc;
  for (int i = 0; i < pixels * n; ++i) {
    acc.push_back(draw_wide() >> (32 - bits));
    if (draw(0, 20) == 0) acc.back() = draw(0, 1) ? INT32_MAX : -INT32_MAX;
    const int m = first.m[i % n], s = first.s[i % n];
    // (2 k + 1) * 2^(s - 1) / m, an exact half where m is a power of two
    if (m == 1 << 30 && s > 31 && s < 60 && draw(0, 1)) acc.back() = static_cast<int32_t>((2 * draw(-300, 300) + int64_t{1}) * (int64_t{1} << (s - 31)) % INT32_MAX);
  }
  std::memcpy(memory.data, acc.data(), acc.size() * 4);
  const int64_t y_pixel = n + draw(0, 1) * draw(1, 30);
  Fenced y(pixels ? static_cast<size_t>((pixels - 1) * y_pixel + n) : 0);
  compare("fixed", y,
          [&](rw::Isa isa) {
            const rw::FixedKernel& kernel = fixed_on(isa);
            const size_t bytes = kernel.packed_bytes(n), room = (bytes + 127) / 64 * 64;
            auto* packed = static_cast<uint8_t*>(aligned_alloc(64, room));
            std::memset(packed, 0x5a, room);
            kernel.pack(e, packed);
            for (size_t i = bytes; i < room; ++i)
              if (packed[i] != 0x5a) printf("%s: pack() wrote too far\n", name_of(isa)), ++failures, i = room;
            kernel.run(packed, reinterpret_cast<const int32_t*>(memory.data), y.data, y_pixel, pixels);
            free(packed);
          },
          [&] {
            for (int i = 0; i < pixels; ++i)
              for (int c = 0; c < n; ++c) {
                const Wide p = scaled(acc[static_cast<size_t>(i) * n + c], first.m[c], first.s[c]) + zero[c];
                int q;
                if (kind == FixedKind::clamp) {
                  q = clamped(p, lo, hi);
                } else if (kind == FixedKind::table) {
                  q = codes[clamped(p, 0, 255)];
                } else {
                  const int at = clamped(p, -32768, 32767) + 32768, k = at / 128, f = at % 128;
                  const int v = values[k] * 128 + (values[k + 1] - values[k]) * f;
                  q = clamped(scaled(v, second.m[c], second.s[c]) + zero2[c], lo, hi);
                }
                y.data[i * y_pixel + c] = static_cast<uint8_t>(q);
              }
          });
}

// `over`: the result lies where the first operand lies, as plans do it.
void test_add() {
  const int h = draw(1, 5), w = draw(1, 9), c = draw_channels();
  const Picture a(h, w, c), b(h, w, c, 1, draw(0, 3) == 0, draw(0, 3) == 0), fresh(h, w, c);
  const bool over = draw(0, 2) == 0;
  const Picture& y = over ? a : fresh;
  const auto ma = draws(c, 1 << 20, 1 << 21), zero = draws(c, 0, 255);
  std::vector<int32_t> mb, s;
  for (int i = 0; i < c; ++i) mb.push_back(draw(0, 9) ? draw(0, 1 << 21) : 1 << 21), s.push_back(draw(0, 3) ? draw(19, 23) : draw(1, 31));
  const rw::AddFixedParams p = {draw(0, 3) ? draw(0, 255) : 255 * draw(0, 1), draw(0, 255), draw(0, 1) * 17, 255 - draw(0, 1) * 40, ma.data(), mb.data(), zero.data(), s.data()};
  const Rows rows(h);
  const std::vector<uint8_t> left = a.memory->copy();
  const auto code = [&](int r, int x, int i) { return left[static_cast<size_t>(r * a.image.row + x * a.image.pixel + i)]; };
  compare("add_fixed", *y.memory, [&](rw::Isa isa) { add_fixed_on(isa)(a.image, b.image, y.image, p, rows.begin, rows.end); },
          [&] {
            for (int r = rows.begin; r < rows.end; ++r)
              for (int x = 0; x < w; ++x)
                for (int i = 0; i < c; ++i) {
                  const int64_t sum = int64_t(code(r, x, i) - p.za) * ma[i] + int64_t(b.code(r, x, i) - p.zb) * mb[i];
                  *y.at(r, x, i) = static_cast<uint8_t>(clamped(floor_shift(Wide{sum} + (Wide{1} << (s[i] - 1)), s[i]) + zero[i], p.lo, p.hi));
                }
          });
}

void test_mul() {
  const int h = draw(1, 5), w = draw(1, 9), c = draw_channels();
  const Picture a(h, w, c), b(h, w, c, 1, draw(0, 2) == 0, draw(0, 2) == 0), y(h, w, c);
  const Scales scale(1, 16);
  const rw::MulFixedParams p = {draw(0, 255), draw(0, 255), draw(0, 255), draw(0, 1) * 17, 255 - draw(0, 1) * 40, scale.m[0], scale.s[0]};
  const Rows rows(h);
  compare("mul_fixed", *y.memory, [&](rw::Isa isa) { mul_fixed_on(isa)(a.image, b.image, y.image, p, rows.begin, rows.end); },
          [&] {
            for (int r = rows.begin; r < rows.end; ++r)
              for (int x = 0; x < w; ++x)
                for (int i = 0; i < c; ++i) {
                  const int64_t product = static_cast<int64_t>(a.code(r, x, i) - p.za) * (b.code(r, x, i) - p.zb);
                  *y.at(r, x, i) = static_cast<uint8_t>(clamped(scaled(product, p.m, p.s) + p.zy, p.lo, p.hi));
                }
          });
}

void test_avgpool() {
  const Window k;
  const int c = draw_channels();
  const Picture x(k.h, k.w, c), y(k.out_h, k.out_w, c);
  const int positions = k.kh * k.kw;
  Scales scale(positions + 1, 8);
  for (int n = 1; n <= positions; ++n) scale.s[static_cast<size_t>(n)] = std::min(61, 31 + 32 - __builtin_clz(static_cast<unsigned>(n)) + draw(-1, 1));
  const rw::PoolFixedParams p = {k.kh, k.kw, k.sh, k.sw, k.top, k.left, draw(0, 1) == 1, draw(0, 255), draw(0, 255), scale.m.data(), scale.s.data()};
  const Rows rows(k.out_h);
  compare("avgpool_fixed", *y.memory, [&](rw::Isa isa) { avgpool_fixed_on(isa)(x.image, y.image, p, rows.begin, rows.end); },
          [&] {
            for (int r = rows.begin; r < rows.end; ++r)
              for (int i = 0; i < k.out_w; ++i)
                for (int ch = 0; ch < c; ++ch) {
                  int64_t sum = 0;
                  size_t n = 0;
                  each_position(k, r, i, [&](int u, int v) { sum += x.code(u, v, ch) - p.zx, ++n; });
                  if (p.count_padding) n = static_cast<size_t>(positions);
                  *y.at(r, i, ch) = static_cast<uint8_t>(clamped(scaled(sum, scale.m[n], scale.s[n]) + p.zy, 0, 255));
                }
          });
}

void test_linear() {
  const int h = draw(1, 6), w = draw(1, 6), c = draw_channels(), out_h = draw(1, 9), out_w = draw(1, 9);
  const Picture x(h, w, c), y(out_h, out_w, c);
  const auto row0 = draws(out_h, 0, h - 1), row1 = draws(out_h, 0, h - 1), column0 = draws(out_w, 0, w - 1), column1 = draws(out_w, 0, w - 1);
  const auto weights = [](int n) {
    std::vector<int32_t> v;
    for (int i = 0; i < n; ++i) v.push_back(draw(0, 1) ? 512 * draw(0, 4) : draw(0, 2048));
    return v;
  };
  const auto wy = weights(out_h), wx = weights(out_w);
  const rw::LinearFixedParams p = {row0.data(), row1.data(), wy.data(), column0.data(), column1.data(), wx.data()};
  const Rows rows(out_h);
  compare("linear_fixed", *y.memory, [&](rw::Isa isa) { linear_fixed_on(isa)(x.image, y.image, p, rows.begin, rows.end); },
          [&] {
            for (int r = rows.begin; r < rows.end; ++r)
              for (int i = 0; i < out_w; ++i)
                for (int ch = 0; ch < c; ++ch) {
                  const auto code = [&](int u, int v) { return int64_t{x.code(u, v, ch)}; };
                  const int64_t top = code(row0[r], column0[i]) * (2048 - wx[i]) + code(row0[r], column1[i]) * wx[i];
                  const int64_t bottom = code(row1[r], column0[i]) * (2048 - wx[i]) + code(row1[r], column1[i]) * wx[i];
                  *y.at(r, i, ch) = static_cast<uint8_t>(floor_shift(Wide{top * (2048 - wy[r]) + bottom * wy[r]} + (1 << 21), 22));
                }
          });
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? atoi(argv[1]) : 1500;
  source().seed(argc > 2 ? static_cast<unsigned>(atoi(argv[2])) : 1);
  void (*const tests[])() = {test_epilogue, test_add, test_mul, test_avgpool, test_linear};
  for (int i = 0; i < rounds && failures < 10; ++i)
    for (const auto test : tests) test();
  printf("fixed-point kernels: %d rounds on", rounds);
  for (rw::Isa isa : paths()) printf(" %s", name_of(isa));
  printf(": %s\n", failures ? "FAILED" : "all equal");
  return failures ? 1 : 0;
}
