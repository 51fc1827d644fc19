// Operations on images (H, W, C) that one kernel call computes by rows: add, mul, pools, resizes, table, gather.
#include "ops/rows.h"

namespace rw {
namespace {

constexpr double kProduct = 1073741824.0;   // |code difference * multiplier| stays below

}  // namespace

Made make_add(const Source& s) {
  const View a = s.image(0, "a", Dtype::u8), b = s.image(1, "b", Dtype::u8), y = s.image(2, "y", Dtype::u8);
  s.same_dims(a, y);
  s.same_dims(b, y);
  const int za = s.integer(0, "z_a", 0, 255), zb = s.integer(1, "z_b", 0, 255), lo = s.integer(2, "lo", 0, 255), hi = s.integer(3, "hi", lo, 255);
  auto ma = s.reals(0, "multipliers of a", y.c(), kProduct / 512), mb = s.reals(1, "multipliers of b", y.c(), kProduct / 512);
  auto zero = s.integers(2, "zero points", y.c(), 0, 255);
  return rows(y, 0.06, [=, run = s.kernels.add_u8](Bases bases, int begin, int end) {
    run(a.image(bases), b.image(bases), y.image(bases), {za, zb, lo, hi, ma.data(), mb.data(), zero.data()}, begin, end);
  });
}

Made make_mul(const Source& s) {
  const View a = s.image(0, "a", Dtype::u8), b = s.image(1, "b", Dtype::u8), y = s.image(2, "y", Dtype::u8);
  s.same_dims(a, y);
  s.same_dims(b, y);
  MulParams p{};
  p.za = s.integer(0, "z_a", 0, 255);
  p.zb = s.integer(1, "z_b", 0, 255);
  p.zy = s.integer(2, "z_y", 0, 255);
  p.lo = s.integer(3, "lo", 0, 255);
  p.hi = s.integer(4, "hi", p.lo, 255);
  p.m = s.real(5, "m", kProduct / 65536);
  return rows(y, 0.06, [=, run = s.kernels.mul_u8](Bases bases, int begin, int end) {
    run(a.image(bases), b.image(bases), y.image(bases), p, begin, end);
  });
}

Made make_pool(const Source& s) {
  const bool average = s.op.code == OpCode::AVGPOOL, codes = s.tensors[0].t.dtype == Dtype::u8;
  const View x = s.image(0, "x", codes ? Dtype::u8 : Dtype::f32), y = s.image(1, "y", codes ? Dtype::u8 : Dtype::f32);
  const Window w(s, x, y);
  PoolParams p{w.kh, w.kw, w.sh, w.sw, w.pad_top, w.pad_left, false, 0, 0, nullptr};
  std::vector<float> m;
  if (average) {
    p.count_padding = s.integer(6, "count padding", 0, 1) != 0;
    p.zx = s.integer(7, "z_x", 0, 255);
    p.zy = s.integer(8, "z_y", 0, 255);
    const int64_t positions = w.positions(s);
    if (codes) {
      m = s.blob<float>(0, "multipliers", positions + 1);
      // Entry 0 stands for no position and is never used.
      for (int64_t n = 1; n <= positions; n++)
        s.require(std::fabs(m[n]) * 255.0 * double(n) < kProduct, "can overflow 32 bits behind its multiplier");
    }
  }
  const auto run = average ? (codes ? s.kernels.avgpool_u8 : s.kernels.avgpool_f32) : (codes ? s.kernels.maxpool_u8 : s.kernels.maxpool_f32);
  return rows(y, 0.03 * w.area(x), [=](Bases bases, int begin, int end) {
    PoolParams q = p;
    q.m = m.data();
    run(x.image(bases), y.image(bases), q, begin, end);
  });
}

Made make_nearest(const Source& s) {
  const Dtype type = s.tensors[0].t.dtype;
  s.require(type != Dtype::i32, "has the wrong type for x");
  const View x = s.image(0, "x", type), y = s.image(1, "y", type);
  s.require(x.c() == y.c(), "has tensors with different channel counts");
  auto row = s.integers(0, "rows", y.h(), 0, x.h() - 1), column = s.integers(1, "columns", y.w(), 0, x.w() - 1);
  const int element = static_cast<int>(x.t.element());
  return rows(y, 0.05 * element, [=, run = s.kernels.nearest](Bases bases, int begin, int end) {
    run(x.image(bases), y.image(bases), element, row.data(), column.data(), begin, end);
  });
}

Made make_linear(const Source& s) {
  const bool codes = s.tensors[0].t.dtype == Dtype::u8;
  const View x = s.image(0, "x", codes ? Dtype::u8 : Dtype::f32), y = s.image(1, "y", codes ? Dtype::u8 : Dtype::f32);
  s.require(x.c() == y.c(), "has tensors with different channel counts");
  auto row0 = s.integers(0, "upper rows", y.h(), 0, x.h() - 1), row1 = s.integers(1, "lower rows", y.h(), 0, x.h() - 1);
  auto column0 = s.integers(3, "left columns", y.w(), 0, x.w() - 1), column1 = s.integers(4, "right columns", y.w(), 0, x.w() - 1);
  auto wy = s.reals(2, "row weights", y.h(), 1.0), wx = s.reals(5, "column weights", y.w(), 1.0);
  return rows(y, 0.3, [=, run = codes ? s.kernels.linear_u8 : s.kernels.linear_f32](Bases bases, int begin, int end) {
    run(x.image(bases), y.image(bases), {row0.data(), row1.data(), wy.data(), column0.data(), column1.data(), wx.data()}, begin, end);
  });
}

Made make_gather(const Source& s) {
  const Dtype type = s.tensors[0].t.dtype;
  s.require(type != Dtype::i32, "has the wrong type for x");
  const View x = s.image(0, "x", type), y = s.image(1, "y", type);
  s.require(x.h() == y.h() && x.w() == y.w(), "has tensors of different sizes");
  auto index = s.integers(0, "indices", y.c(), 0, x.c() - 1);
  const int element = static_cast<int>(x.t.element());
  const bool permutes = s.kernels.isa == Isa::avx512vnni && element == 1 && x.c() <= 256;
  return rows(y, permutes ? 0.05 : 0.3, [=, run = s.kernels.gather](Bases bases, int begin, int end) {
    run(x.image(bases), y.image(bases), element, index.data(), begin, end);
  });
}

}  // namespace rw
