// maxpool_f32, avgpool_f32 and linear_f32 on every path. Maxima are compared with ==. Averages: n additions and a division,
// (n + 2) u times the average of the absolute values. Linear: three products and additions deep, 8 u times the largest absolute value
// of the four corners; and the paths agree bit for bit, as the order is fixed.
#include <algorithm>

#include "f32_testing.h"

using namespace testing;

namespace {

struct Picture {
  Picture(int h, int w, int c, Random& random)
      : pixel(c + random.below(3)), row(w * pixel + random.below(5)), floats(static_cast<size_t>(h - 1) * row + (w - 1) * pixel + c),
        memory(floats * sizeof(float)), image{memory.bytes(), 4ll * row, 4ll * pixel, h, w, c} {
    for (size_t i = 0; i < floats; i++) memory.floats()[i] = random.real(-5, 5);
  }
  void wipe() {
    for (size_t i = 0; i < floats; i++) memory.floats()[i] = sentinel();
  }
  float& at(int y, int x, int c) { return memory.floats()[static_cast<size_t>(y) * row + x * pixel + c]; }
  bool gaps_untouched() {
    for (size_t i = 0; i < floats; i++) {
      const size_t inside = i % row;
      if ((inside / pixel >= static_cast<size_t>(image.w) || inside % pixel >= static_cast<size_t>(image.c)) && !same_bits(memory.floats()[i], sentinel())) return false;
    }
    return true;
  }
  int pixel, row;
  size_t floats;
  Fenced memory;
  rw::Image image;
};

void pools(Random& random, int h, int w, int c, const rw::PoolParams& p, int out_h, int out_w) {
  Picture x(h, w, c, random), y(out_h, out_w, c, random);
  for (rw::Isa isa : paths())
    for (bool average : {false, true}) {
      y.wipe();
      const rw::PoolFn f = average ? rw::kernels(isa).avgpool_f32 : rw::kernels(isa).maxpool_f32;
      const int cut = random.below(out_h + 1);
      f(x.image, y.image, p, 0, cut);
      f(x.image, y.image, p, cut, out_h);
      const char* what = average ? "avgpool_f32" : "maxpool_f32";
      if (!y.gaps_untouched()) fail("%s %s: wrote beside the output", what, name(isa));
      for (int r = 0; r < out_h; r++)
        for (int q = 0; q < out_w; q++)
          for (int k = 0; k < c; k++) {
            double top = -INFINITY, sum = 0, size = 0;
            int count = 0;
            for (int i = 0; i < p.kh; i++)
              for (int j = 0; j < p.kw; j++) {
                const int yy = r * p.sh - p.pad_top + i, xx = q * p.sw - p.pad_left + j;
                if (yy < 0 || yy >= h || xx < 0 || xx >= w) continue;
                const double v = x.at(yy, xx, k);
                top = std::fmax(top, v), sum += v, size += std::fabs(v), count++;
              }
            const float got = y.at(r, q, k);
            const int n = p.count_padding ? p.kh * p.kw : count;
            if (average ? !(std::fabs(got - sum / n) <= (n + 2) * kUnit * size / n) : static_cast<double>(got) != top)
              return fail("%s %s: %dx%d of %dx%d, (%d, %d, %d) is %.9g, not %.9g", what, name(isa), p.kh, p.kw, h, w, r, q, k, got, average ? sum / n : top);
          }
    }
}

void linear(Random& random, int h, int w, int c, int out_h, int out_w) {
  Picture x(h, w, c, random), y(out_h, out_w, c, random);
  std::vector<int32_t> row0(out_h), row1(out_h), column0(out_w), column1(out_w);
  std::vector<float> wy(out_h), wx(out_w);
  for (int i = 0; i < out_h; i++) row0[i] = random.below(h), row1[i] = std::min(row0[i] + 1, h - 1), wy[i] = random.below(4) ? random.real(0, 1) : 0;
  for (int i = 0; i < out_w; i++) column0[i] = random.below(w), column1[i] = std::min(column0[i] + 1, w - 1), wx[i] = random.below(4) ? random.real(0, 1) : 0;
  const rw::LinearParams p = {row0.data(), row1.data(), wy.data(), column0.data(), column1.data(), wx.data()};
  std::vector<float> reference;
  for (rw::Isa isa : paths()) {
    y.wipe();
    rw::kernels(isa).linear_f32(x.image, y.image, p, 0, out_h / 2);
    rw::kernels(isa).linear_f32(x.image, y.image, p, out_h / 2, out_h);
    if (!y.gaps_untouched()) fail("linear_f32 %s: wrote beside the output", name(isa));
    if (isa == rw::Isa::portable) reference.assign(y.memory.floats(), y.memory.floats() + y.floats);
    if (memcmp(reference.data(), y.memory.bytes(), y.floats * sizeof(float)) != 0) fail("linear_f32 %s: not the bits of the portable path", name(isa));
    for (int r = 0; r < out_h; r++)
      for (int q = 0; q < out_w; q++)
        for (int k = 0; k < c; k++) {
          const double a = x.at(row0[r], column0[q], k), b = x.at(row0[r], column1[q], k), d = x.at(row1[r], column0[q], k), e = x.at(row1[r], column1[q], k);
          const double upper = a + (b - a) * wx[q], lower = d + (e - d) * wx[q], t = upper + (lower - upper) * wy[r];
          const double size = std::fmax(std::fmax(std::fabs(a), std::fabs(b)), std::fmax(std::fabs(d), std::fabs(e)));
          if (!(std::fabs(y.at(r, q, k) - t) <= 8 * kUnit * size)) return fail("linear_f32 %s: (%d, %d, %d) is %.9g, not %.9g", name(isa), r, q, k, y.at(r, q, k), t);
        }
  }
}

}  // namespace

int main() {
  Random random;
  long cases = 0;
  for (int i = 0; i < 300; i++, cases++) {
    const int kh = 1 + random.below(6), kw = 1 + random.below(6), sh = 1 + random.below(3), sw = 1 + random.below(3);
    const int top = random.below(kh), left = random.below(kw), h = kh + random.below(8), w = kw + random.below(12);
    // up to where a window still covers at least one position: the last output may reach over the lower right edge (ceil mode)
    const int out_h = 1 + random.below((h - 1 + top) / sh + 1), out_w = 1 + random.below((w - 1 + left) / sw + 1);
    pools(random, h, w, 1 + random.below(37), {kh, kw, sh, sw, top, left, i % 2 == 0, 0, 0, nullptr}, out_h, out_w);
  }
  pools(random, 13, 13, 40, {13, 13, 1, 1, 6, 6, false, 0, 0, nullptr}, 13, 13);
  pools(random, 7, 7, 40, {7, 7, 1, 1, 0, 0, false, 0, 0, nullptr}, 1, 1);
  pools(random, 3, 1300, 5, {3, 3, 2, 2, 1, 1, true, 0, 0, nullptr}, 2, 650);    // columns beyond the buffer
  pools(random, 2, 1300, 5, {1, 700, 1, 300, 0, 0, true, 0, 0, nullptr}, 2, 3);  // a window beyond the buffer
  for (int i = 0; i < 60; i++, cases++) linear(random, 1 + random.below(6), 1 + random.below(6), 1 + random.below(37), 1 + random.below(9), 1 + random.below(9));
  return finish("pool_f32", cases + 4);
}
