// conv_f32 on every path against the sum in float64.
//
// Bound: a sum of K products and a bias in any order, fused or not, is off by at most (K + 2) u / (1 - (K + 2) u) times the sum of the
// absolute values, u = 2^-24 (Higham, Accuracy and Stability, 3.1); clamping only brings values closer together.
// Other activations: bit for bit what unary_f32 makes of the result without activation.
#include "f32_testing.h"

using namespace testing;

namespace {

struct Case { int h, w, cin, n, kh, kw, stride, dilation, unary; bool merged, dense; };

void check(rw::Isa isa, const Case& c, Random& random) {
  const rw::Kernels& k = rw::kernels(isa);
  const int in_h = (c.h - 1) * c.stride + (c.kh - 1) * c.dilation + 1, in_w = (c.w - 1) * c.stride + (c.kw - 1) * c.dilation + 1;
  const int x_pixel = c.cin + (c.merged || c.dense ? 0 : random.below(5)), y_pixel = c.n + (c.dense ? 0 : random.below(4));
  const int x_row = in_w * x_pixel + (c.dense ? 0 : random.below(7)), y_row = c.w * y_pixel + (c.dense ? 0 : random.below(9));
  Fenced x(sizeof(float) * (static_cast<size_t>(in_h - 1) * x_row + (in_w - 1) * x_pixel + c.cin));
  for (size_t i = 0; i < static_cast<size_t>(in_h - 1) * x_row + (in_w - 1) * x_pixel + c.cin; i++) x.floats()[i] = random.real(-2, 2);
  const int depth = c.kh * c.kw * c.cin;
  std::vector<float> w(static_cast<size_t>(c.n) * depth), bias(c.n);
  for (float& v : w) v = random.real(-1, 1);
  for (float& v : bias) v = random.real(-3, 3);

  rw::ConvShape shape = {c.merged ? c.kh : c.kh * c.kw, c.merged ? c.kw * c.cin : c.cin, c.n, true};
  rw::ConvWeights weights = {};
  weights.w = w.data();
  weights.e.kind = rw::EpilogueKind::real;
  weights.e.float_bias = bias.data();
  weights.e.unary_a = -0.5f, weights.e.unary_b = 1.5f;
  std::vector<int32_t> tap;
  for (int r = 0; r < c.kh; r++)
    for (int q = 0; q < (c.merged ? 1 : c.kw); q++)
      tap.push_back(static_cast<int32_t>(sizeof(float)) * (r * c.dilation * x_row + q * c.dilation * x_pixel));

  const size_t y_floats = static_cast<size_t>(c.h) * y_row;
  std::vector<float> y[2];
  for (int pass = 0; pass < 2; pass++) {  // 0: the clamp or nothing, 1: with the activation
    const bool clamp = c.unary <= 2;
    weights.e.unary = pass == 0 && !clamp ? 0 : c.unary;
    Aligned packed(k.conv_f32.packed_bytes(shape));
    k.conv_f32.pack(shape, weights, packed.get());
    Fenced out(y_floats * sizeof(float));
    for (size_t i = 0; i < y_floats; i++) out.floats()[i] = sentinel();
    const rw::ConvRun run = {x.bytes(), 4ll * x_row * c.stride, 4ll * x_pixel * c.stride, tap.data(), packed.get(),
                             out.bytes(), 4ll * y_row, 4ll * y_pixel, c.w};
    const int64_t pixels = static_cast<int64_t>(c.h) * c.w, cut = pixels / 3 / k.conv_f32.tile * k.conv_f32.tile;
    k.conv_f32.run(shape, run, 0, cut);
    k.conv_f32.run(shape, run, cut, pixels);
    y[pass].assign(out.floats(), out.floats() + y_floats);
  }
  for (int row = 0; row < c.h; row++)
    for (int at = 0; at < y_row; at++) {
      const int column = at / y_pixel, o = at % y_pixel;
      const float got = y[0][static_cast<size_t>(row) * y_row + at];
      if (column >= c.w || o >= c.n) {
        if (!same_bits(got, sentinel())) return fail("conv_f32 %s: wrote beside the output at %d %d", name(isa), row, at);
        continue;
      }
      double sum = bias[o], size = std::fabs(bias[o]);
      for (int r = 0; r < c.kh; r++)
        for (int q = 0; q < c.kw; q++)
          for (int i = 0; i < c.cin; i++) {
            const double p = static_cast<double>(w[static_cast<size_t>(o) * depth + (r * c.kw + q) * c.cin + i]) *
                             x.floats()[static_cast<size_t>(row * c.stride + r * c.dilation) * x_row + (column * c.stride + q * c.dilation) * x_pixel + i];
            sum += p, size += std::fabs(p);
          }
      if (c.unary == 1) sum = std::fmax(sum, 0);
      if (c.unary == 2) sum = std::fmin(std::fmax(sum, -0.5), 1.5);
      const double bound = (depth + 2) * kUnit / (1 - (depth + 2) * kUnit) * size;
      if (!(std::fabs(got - sum) <= bound))
        return fail("conv_f32 %s: (%d, %d, %d) is %.9g, not %.9g (bound %.3g); k %dx%d cin %d n %d w %d", name(isa), row, column, o, got, sum,
                    bound, c.kh, c.kw, c.cin, c.n, c.w);
      float expected = got;
      if (c.unary > 2) rw::kernels(rw::Isa::portable).unary_f32(&got, &expected, 1, c.unary, -0.5f, 1.5f);
      if (!same_bits(expected, y[1][static_cast<size_t>(row) * y_row + at]))
        return fail("conv_f32 %s: activation %d of %.9g is %.9g, not %.9g", name(isa), c.unary, got,
                    y[1][static_cast<size_t>(row) * y_row + at], expected);
    }
}

}  // namespace

int main() {
  long cases = 0;
  for (rw::Isa isa : paths()) {
    Random random;
    for (int n = 1; n <= 70; n += n < 20 ? 1 : 7)  // every tail of the outputs, every width of a row
      for (int w = 1; w <= 30; w += 3, cases++) check(isa, {2, w + n % 3, 5, n, 1, 1, 1, 1, n % 6, false, n % 2 == 0}, random);
    for (int i = 0; i < 150; i++, cases++) {
      const int kernel = 1 + random.below(4), stride = 1 + random.below(2);
      const bool merged = random.below(3) == 0;
      check(isa, {1 + random.below(6), 1 + random.below(33), merged ? 1 + random.below(4) : 1 + random.below(40), 1 + random.below(50), kernel,
                  1 + random.below(kernel), stride, merged ? 1 : 1 + random.below(2), random.below(22), merged, false}, random);
    }
    check(isa, {60, 60, 64, 33, 1, 1, 1, 1, 5, false, true}, random);  // several chunks of pixels
    cases++;
  }
  return finish("conv_f32", cases);
}
