// The operations of the fixed-point form besides convolutions: docs/engine.md, "Fixed point".
#include "ops/fixed.h"

#include "ops/rows.h"

namespace rw {
namespace {

constexpr int kLeastShift = 2, kMostShift = 62;
constexpr int32_t kNormal = 1 << 30;
constexpr int kAddMultiplier = 1 << 21, kAddMostShift = 46;
constexpr int kWhole = 2048;   // the sum of two weights of a linear resize

void check_scale(const Source& source, int64_t m, int64_t s, const char* name) {
  const auto number = [](int64_t v) { return std::to_string(v); };
  if (s < kLeastShift || s > kMostShift) source.refuse("has the shift " + number(s) + " among its " + name + ", outside 2..62");
  if (m < 0 || (m < kNormal && s != kMostShift))
    source.refuse("has the multiplier " + number(m) + " with the shift " + number(s) + " among its " + name + "; it must be 2^30 or more, or the shift 62");
}

}  // namespace

FixedScales::FixedScales(const Source& source, std::vector<int32_t> multipliers, std::vector<int32_t> shifts, const char* name, size_t first)
    : m(std::move(multipliers)), s(std::move(shifts)) {
  for (size_t i = 0; i < m.size(); i++) {
    if (i < first) m[i] = 0, s[i] = kLeastShift;
    else check_scale(source, m[i], s[i], name);
  }
}

Made make_add_fixed(const Source& s) {
  const View a = s.image(0, "a", Dtype::u8), b = s.image(1, "b", Dtype::u8), y = s.image(2, "y", Dtype::u8);
  s.same_dims(a, y);
  s.same_dims(b, y);
  const int za = s.integer(0, "z_a", 0, 255), zb = s.integer(1, "z_b", 0, 255), lo = s.integer(2, "lo", 0, 255), hi = s.integer(3, "hi", lo, 255);
  auto ma = s.integers(0, "multipliers of a", y.c(), 0, kAddMultiplier), mb = s.integers(1, "multipliers of b", y.c(), 0, kAddMultiplier);
  auto zero = s.integers(2, "zero points", y.c(), 0, 255), shift = s.integers(3, "shifts", y.c(), 1, kAddMostShift);
  // The sum is below 2^30, so a shift of 32 or more leaves nothing of it; kernels compute in 32 bits.
  for (size_t c = 0; c < shift.size(); c++)
    if (shift[c] > 31) ma[c] = mb[c] = 0, shift[c] = 1;
  return rows(y, 0.06, [=, run = s.kernels.add_fixed](Bases bases, int begin, int end) {
    run(a.image(bases), b.image(bases), y.image(bases), {za, zb, lo, hi, ma.data(), mb.data(), zero.data(), shift.data()}, begin, end);
  });
}

Made make_mul_fixed(const Source& s) {
  const View a = s.image(0, "a", Dtype::u8), b = s.image(1, "b", Dtype::u8), y = s.image(2, "y", Dtype::u8);
  s.same_dims(a, y);
  s.same_dims(b, y);
  MulFixedParams p{};
  p.za = s.integer(0, "z_a", 0, 255);
  p.zb = s.integer(1, "z_b", 0, 255);
  p.zy = s.integer(2, "z_y", 0, 255);
  p.lo = s.integer(3, "lo", 0, 255);
  p.hi = s.integer(4, "hi", p.lo, 255);
  p.m = s.op.attributes[5];
  p.s = s.op.attributes[6];
  check_scale(s, p.m, p.s, "attributes");
  return rows(y, 0.2, [=, run = s.kernels.mul_fixed](Bases bases, int begin, int end) {
    run(a.image(bases), b.image(bases), y.image(bases), p, begin, end);
  });
}

Made make_pool_fixed(const Source& s) {
  const View x = s.image(0, "x", Dtype::u8), y = s.image(1, "y", Dtype::u8);
  const Window w(s, x, y);
  PoolFixedParams p{w.kh, w.kw, w.sh, w.sw, w.pad_top, w.pad_left, false, 0, 0, nullptr, nullptr};
  p.count_padding = s.integer(6, "count padding", 0, 1) != 0;
  p.zx = s.integer(7, "z_x", 0, 255);
  p.zy = s.integer(8, "z_y", 0, 255);
  const int64_t positions = w.positions(s);
  auto multipliers = s.blob<int32_t>(0, "multipliers", positions + 1), shifts = s.blob<int32_t>(1, "shifts", positions + 1);
  const FixedScales scales(s, std::move(multipliers), std::move(shifts), "multipliers", 1);
  return rows(y, 0.03 * w.area(x), [=, run = s.kernels.avgpool_fixed](Bases bases, int begin, int end) {
    PoolFixedParams q = p;
    q.m = scales.m.data(), q.s = scales.s.data();
    run(x.image(bases), y.image(bases), q, begin, end);
  });
}

Made make_linear_fixed(const Source& s) {
  const View x = s.image(0, "x", Dtype::u8), y = s.image(1, "y", Dtype::u8);
  s.require(x.c() == y.c(), "has tensors with different channel counts");
  auto row0 = s.integers(0, "upper rows", y.h(), 0, x.h() - 1), row1 = s.integers(1, "lower rows", y.h(), 0, x.h() - 1);
  auto column0 = s.integers(3, "left columns", y.w(), 0, x.w() - 1), column1 = s.integers(4, "right columns", y.w(), 0, x.w() - 1);
  auto wy = s.integers(2, "row weights", y.h(), 0, kWhole), wx = s.integers(5, "column weights", y.w(), 0, kWhole);
  return rows(y, 0.3, [=, run = s.kernels.linear_fixed](Bases bases, int begin, int end) {
    run(x.image(bases), y.image(bases), {row0.data(), row1.data(), wy.data(), column0.data(), column1.data(), wx.data()}, begin, end);
  });
}

}  // namespace rw
