// winograd2_f32 and winograd4_f32 on every path against the direct sum in float64, within the bound that stands at the head of
// winograd_f32.h: u (cin + 21) |At| (sum_c (|G||g||Gt|) * (|Bt||d||B|)) |A| + u |bias|, worked out here output by output in float64
// (times 1.001 for what is of second order in u) from matrices written out, not computed as the kernel does.
#include "f32_testing.h"

using namespace testing;

namespace {

const double kG2[4][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, .5, .5}, {0, 0, 1}};  // absolute values throughout
const double kB2[4][4] = {{1, 0, 1, 0}, {0, 1, 1, 0}, {0, 1, 1, 0}, {0, 1, 0, 1}};
const double kA2[2][4] = {{1, 1, 1, 0}, {0, 1, 1, 1}};
const double kG4[6][3] = {{1. / 4, 0, 0}, {1. / 6, 1. / 6, 1. / 6}, {1. / 6, 1. / 6, 1. / 6}, {1. / 24, 1. / 12, 1. / 6}, {1. / 24, 1. / 12, 1. / 6}, {0, 0, 1}};
const double kB4[6][6] = {{4, 0, 5, 0, 1, 0}, {0, 4, 4, 1, 1, 0}, {0, 4, 4, 1, 1, 0}, {0, 2, 1, 2, 1, 0}, {0, 2, 1, 2, 1, 0}, {0, 4, 0, 5, 0, 1}};
const double kA4[4][6] = {{1, 1, 1, 1, 1, 0}, {0, 1, 1, 2, 2, 0}, {0, 1, 1, 4, 4, 0}, {0, 1, 1, 8, 8, 1}};

double g(int m, int i, int k) { return m == 2 ? kG2[i][k] : kG4[i][k]; }
double b(int m, int i, int k) { return m == 2 ? kB2[i][k] : kB4[i][k]; }
double a(int m, int i, int k) { return m == 2 ? kA2[i][k] : kA4[i][k]; }

struct Case { int cin, cout, h, w, unary; bool every; };  // every: check all outputs, else a sample

void check(rw::Isa isa, int tile, const Case& c, Random& random) {
  const rw::Kernels& all = rw::kernels(isa);
  const rw::WinogradKernel& k = tile == 2 ? all.winograd2_f32 : all.winograd4_f32;
  if (k.tile != tile) return fail("winograd%d_f32 %s: tile is %d", tile, name(isa), k.tile);
  const int x_pixel = c.cin + random.below(3), y_pixel = c.cout + random.below(3);
  const int x_row = (c.w + 2) * x_pixel + random.below(3), y_row = c.w * y_pixel + random.below(3);
  const size_t x_floats = static_cast<size_t>(c.h + 1) * x_row + (c.w + 1) * x_pixel + c.cin, y_floats = static_cast<size_t>(c.h) * y_row;
  Fenced x(x_floats * sizeof(float));
  for (size_t i = 0; i < x_floats; i++) x.floats()[i] = random.real(-2, 2);  // the border is drawn as well: its values count
  std::vector<float> w(static_cast<size_t>(c.cout) * 9 * c.cin), bias(c.cout);
  for (float& v : w) v = random.real(-1, 1);
  for (float& v : bias) v = random.real(-3, 3);
  const rw::WinogradShape shape = {c.cin, c.cout, c.h, c.w};
  rw::ConvWeights weights = {};
  weights.w = w.data();
  weights.e.kind = rw::EpilogueKind::real;
  weights.e.float_bias = bias.data();
  weights.e.unary_a = -0.5f, weights.e.unary_b = 1.5f;
  std::vector<float> y[2];
  for (int pass = 0; pass < 2; pass++) {
    weights.e.unary = pass == 0 ? 0 : c.unary;
    Aligned packed(k.packed_bytes(shape)), scratch(k.scratch_bytes(shape));
    k.pack(shape, weights, packed.get());
    Fenced out(y_floats * sizeof(float));
    for (size_t i = 0; i < y_floats; i++) out.floats()[i] = sentinel();
    const rw::WinogradRun run = {x.floats(), 4ll * x_row, 4ll * x_pixel, packed.get(), out.floats(), 4ll * y_row, 4ll * y_pixel, scratch.get()};
    const int64_t tiles = static_cast<int64_t>((c.h + tile - 1) / tile) * ((c.w + tile - 1) / tile), cut = tiles / 3;
    k.run(shape, run, 0, cut);
    k.run(shape, run, cut, tiles);
    y[pass].assign(out.floats(), out.floats() + y_floats);
  }
  for (int row = 0; row < c.h; row++)
    for (int at = 0; at < y_row; at++) {
      const int column = at / y_pixel, o = at % y_pixel;
      const float got = y[0][static_cast<size_t>(row) * y_row + at], active = y[1][static_cast<size_t>(row) * y_row + at];
      if (column >= c.w || o >= c.cout) {
        if (!same_bits(got, sentinel()) || !same_bits(active, sentinel())) return fail("winograd%d_f32 %s: wrote beside the output", tile, name(isa));
        continue;
      }
      float expected = got;
      rw::kernels(rw::Isa::portable).unary_f32(&got, &expected, 1, c.unary, -0.5f, 1.5f);
      if (!same_bits(expected, active)) return fail("winograd%d_f32 %s: activation %d of %.9g is %.9g, not %.9g", tile, name(isa), c.unary, got, active, expected);
      if (!c.every && random.below(400) != 0) continue;
      double sum = bias[o], bracket = 0;
      const int top = row / tile * tile, left = column / tile * tile;
      for (int i = 0; i < c.cin; i++) {
        double filter[3][3], field[6][6] = {};
        for (int r = 0; r < 3; r++)
          for (int q = 0; q < 3; q++) {
            const float weight = w[(static_cast<size_t>(o) * 9 + r * 3 + q) * c.cin + i];
            filter[r][q] = std::fabs(weight);
            sum += static_cast<double>(weight) * x.floats()[static_cast<size_t>(row + r) * x_row + (column + q) * x_pixel + i];
          }
        for (int r = 0; r < tile + 2 && top + r < c.h + 2; r++)
          for (int q = 0; q < tile + 2 && left + q < c.w + 2; q++)
            field[r][q] = std::fabs(x.floats()[static_cast<size_t>(top + r) * x_row + (left + q) * x_pixel + i]);
        for (int e = 0; e < tile + 2; e++)
          for (int f = 0; f < tile + 2; f++) {
            const double weight = a(tile, row - top, e) * a(tile, column - left, f);
            if (weight == 0) continue;
            double wide = 0, d = 0;
            for (int r = 0; r < 3; r++)
              for (int q = 0; q < 3; q++) wide += g(tile, e, r) * g(tile, f, q) * filter[r][q];
            for (int r = 0; r < tile + 2; r++)
              for (int q = 0; q < tile + 2; q++) d += b(tile, e, r) * b(tile, f, q) * field[r][q];
            bracket += weight * wide * d;
          }
      }
      const double bound = 1.001 * kUnit * ((c.cin + 21) * bracket + std::fabs(bias[o])), error = std::fabs(got - sum);
      if (!(error <= bound))
        return fail("winograd%d_f32 %s: (%d, %d, %d) is %.9g, not %.9g (bound %.3g); cin %d cout %d %dx%d", tile, name(isa), row, column, o, got,
                    sum, bound, c.cin, c.cout, c.h, c.w);
    }
}

}  // namespace

int main() {
  long cases = 0;
  for (rw::Isa isa : paths()) {
    Random random;
    for (int tile : {2, 4}) {
      for (int h = 1; h <= 9; h++)  // every remainder of both axes
        for (int w = 1; w <= 9; w += 1 + h % 2, cases++) check(isa, tile, {1 + random.below(20), 1 + random.below(20), h, w, random.below(22), true}, random);
      for (int cout : {1, 4, 8, 15, 16, 17, 31, 32, 33, 48, 70}) {
        check(isa, tile, {16, cout, 6, 7, 1, false}, random);
        cases++;
      }
      check(isa, tile, {64, 48, 50, 39, 5, false}, random);  // several blocks of tiles
      check(isa, tile, {1024, 16, 8, 13, 0, false}, random);
      cases += 2;
    }
  }
  return finish("winograd_f32", cases);
}
