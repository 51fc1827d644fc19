// depthwise_f32 on every path against the sum in float64. Bound as in conv_f32_test.cc with K = kh*kw.
// Activations: bit for bit what unary_f32 makes of the result without one.
#include "f32_testing.h"

using namespace testing;

namespace {

struct Case { rw::DepthwiseShape s; int out_h, out_w, unary; bool dense; };

void check(rw::Isa isa, const Case& c, Random& random) {
  const rw::Kernels& k = rw::kernels(isa);
  const rw::DepthwiseShape& s = c.s;
  const int in_h = (c.out_h - 1) * s.sh + (s.kh - 1) * s.dh + 1, in_w = (c.out_w - 1) * s.sw + (s.kw - 1) * s.dw + 1;
  const int x_pixel = s.c + (c.dense ? 0 : random.below(5)), y_pixel = s.c + (c.dense ? 0 : random.below(5));
  const int x_row = in_w * x_pixel + random.below(5), y_row = c.out_w * y_pixel + random.below(5);
  const size_t x_floats = static_cast<size_t>(in_h - 1) * x_row + (in_w - 1) * x_pixel + s.c, y_floats = static_cast<size_t>(c.out_h) * y_row;
  Fenced x(x_floats * sizeof(float));
  for (size_t i = 0; i < x_floats; i++) x.floats()[i] = random.real(-2, 2);
  const int taps = s.kh * s.kw;
  std::vector<float> w(static_cast<size_t>(taps) * s.c), bias(s.c);
  for (float& v : w) v = random.real(-1, 1);
  for (float& v : bias) v = random.real(-3, 3);
  rw::ConvWeights weights = {};
  weights.w = w.data();
  weights.e.kind = rw::EpilogueKind::real;
  weights.e.float_bias = bias.data();
  weights.e.unary_a = -0.5f, weights.e.unary_b = 1.5f;
  std::vector<float> y[2];
  for (int pass = 0; pass < 2; pass++) {
    weights.e.unary = pass == 0 ? 0 : c.unary;
    Aligned packed(k.depthwise_f32.packed_bytes(s));
    k.depthwise_f32.pack(s, weights, packed.get());
    Fenced out(y_floats * sizeof(float));
    for (size_t i = 0; i < y_floats; i++) out.floats()[i] = sentinel();
    const rw::DepthwiseRun run = {x.bytes(), 4ll * x_row, 4ll * x_pixel, packed.get(), out.bytes(), 4ll * y_row, 4ll * y_pixel, c.out_h, c.out_w};
    const int cut = random.below(c.out_h + 1);
    k.depthwise_f32.run(s, run, 0, cut);
    k.depthwise_f32.run(s, run, cut, c.out_h);
    y[pass].assign(out.floats(), out.floats() + y_floats);
  }
  for (int row = 0; row < c.out_h; row++)
    for (int at = 0; at < y_row; at++) {
      const int column = at / y_pixel, o = at % y_pixel;
      const float got = y[0][static_cast<size_t>(row) * y_row + at], active = y[1][static_cast<size_t>(row) * y_row + at];
      if (column >= c.out_w || o >= s.c) {
        if (!same_bits(got, sentinel()) || !same_bits(active, sentinel())) return fail("depthwise_f32 %s: wrote beside the output", name(isa));
        continue;
      }
      double sum = bias[o], size = std::fabs(bias[o]);
      for (int r = 0; r < s.kh; r++)
        for (int q = 0; q < s.kw; q++) {
          const double p = static_cast<double>(w[static_cast<size_t>(r * s.kw + q) * s.c + o]) *
                           x.floats()[static_cast<size_t>(row * s.sh + r * s.dh) * x_row + (column * s.sw + q * s.dw) * x_pixel + o];
          sum += p, size += std::fabs(p);
        }
      const double bound = (taps + 2) * kUnit / (1 - (taps + 2) * kUnit) * size;
      if (!(std::fabs(got - sum) <= bound))
        return fail("depthwise_f32 %s: (%d, %d, %d) is %.9g, not %.9g; %dx%d stride %d %d dilation %d %d c %d w %d", name(isa), row, column, o,
                    got, sum, s.kh, s.kw, s.sh, s.sw, s.dh, s.dw, s.c, c.out_w);
      float expected = got;
      rw::kernels(rw::Isa::portable).unary_f32(&got, &expected, 1, c.unary, -0.5f, 1.5f);
      if (!same_bits(expected, active)) return fail("depthwise_f32 %s: activation %d of %.9g is %.9g, not %.9g", name(isa), c.unary, got, active, expected);
    }
}

}  // namespace

int main() {
  long cases = 0;
  for (rw::Isa isa : paths()) {
    Random random;
    for (int kernel : {3, 5})
      for (int stride : {1, 2})
        for (int c : {1, 3, 4, 7, 8, 15, 16, 17, 32, 40})
          for (int w : {1, 2, 3, 5, 8}) {
            check(isa, {{kernel, kernel, stride, stride, 1, 1, c, true}, 3, w, random.below(22), w % 2 == 0}, random);
            cases++;
          }
    for (int i = 0; i < 200; i++, cases++) {
      const int kh = 1 + random.below(7), kw = 1 + random.below(7), sh = 1 + random.below(3), sw = 1 + random.below(3), dh = 1 + random.below(2),
                dw = 1 + random.below(2), c = 1 + random.below(40), h = 1 + random.below(4), w = 1 + random.below(20);
      check(isa, {{kh, kw, sh, sw, dh, dw, c, true}, h, w, random.below(22), i % 2 == 0}, random);
    }
  }
  return finish("depthwise_f32", cases);
}
