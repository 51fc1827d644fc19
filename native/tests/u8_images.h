// What the tests of kernels on images of codes share: pictures with gaps, ranges of rows, windows, and the comparison of every
// path with what is expected.
#pragma once
#include <cstring>
#include <memory>

#include "u8_paths.h"

namespace rw_test {

using rw::Image;

inline int failures = 0;

// Memory of an image with random gaps between pixels and rows; step 0 where it is broadcast.
struct Picture {
  Picture(int h, int w, int c, int element = 1, bool broadcast_w = false, bool broadcast_h = false) {
    const bool dense = draw(0, 1);
    image.h = h, image.w = w, image.c = c;
    const int64_t pixel = static_cast<int64_t>(c + (dense ? 0 : draw(0, 40))) * element;
    image.pixel = broadcast_w ? 0 : pixel;
    const int64_t row = (broadcast_w ? 1 : w) * pixel + (dense ? 0 : draw(0, 40)) * element;
    image.row = broadcast_h ? 0 : row;
    const int64_t bytes = (broadcast_h ? 0 : (h - 1) * row) + (broadcast_w ? 0 : (w - 1) * pixel) + static_cast<int64_t>(c) * element;
    memory = std::make_unique<Fenced>(static_cast<size_t>(bytes));
    image.data = memory->data;
  }
  uint8_t* at(int64_t y, int64_t x, int64_t byte = 0) const { return memory->data + y * image.row + x * image.pixel + byte; }
  int code(int64_t y, int64_t x, int64_t c) const { return *at(y, x, c); }
  Image image;
  std::unique_ptr<Fenced> memory;
};

// Runs `kernel(isa)` on every path into the same output, which starts as it was, and compares with what `expect` writes.
template <class Kernel, class Expect>
void compare(const char* name, Fenced& y, const Kernel& kernel, const Expect& expect) {
  const std::vector<uint8_t> before = y.copy();
  expect();
  const std::vector<uint8_t> expected = y.copy();
  for (rw::Isa isa : paths()) {
    std::memcpy(y.data, before.data(), before.size());
    kernel(isa);
    const int64_t at = y.difference(expected);
    if (at < 0) continue;
    printf("%s on %s: byte %lld is %d, not %d\n", name, name_of(isa), static_cast<long long>(at), y.data[at], expected[static_cast<size_t>(at)]);
    ++failures;
  }
}

inline int draw_channels() {
  static const int usual[] = {1, 3, 16, 24, 32, 64, 96, 116, 128, 232};
  return draw(0, 1) ? usual[draw(0, 9)] : draw(1, 300);
}

struct Rows {
  explicit Rows(int h) : begin(draw(0, 2) ? 0 : draw(0, h - 1)), end(draw(0, 2) ? h : draw(begin, h)) {}
  int begin, end;
};

// Window sizes from 1x1 to 13x13, padding smaller than the window, outputs as ONNX counts them (rounded down or up).
struct Window {
  Window() {
    const int same[] = {2, 3, 5, 9, 13};
    kh = kw = same[draw(0, 4)];
    sh = sw = kh <= 3 ? draw(1, 2) : 1;
    if (draw(0, 2) == 0) kh = draw(1, 7), kw = draw(1, 7), sh = draw(1, 3), sw = draw(1, 3);
    top = draw(0, kh / 2), left = draw(0, kw / 2);
    const int bottom = draw(0, kh / 2), right = draw(0, kw / 2);
    h = draw(1, 16), w = draw(1, 16);
    if (h + top + bottom < kh) h = kh;
    if (w + left + right < kw) w = kw;
    if (draw(0, 9) == 0) kh = h, kw = w, sh = sw = 1, top = left = 0, out_h = out_w = 1;  // global
    else out_h = (h + top + bottom - kh) / sh + 1, out_w = (w + left + right - kw) / sw + 1;
  }
  int kh, kw, sh, sw, top, left, h, w, out_h, out_w;
};

template <class F>
void each_position(const Window& k, int r, int x, const F& f) {
  for (int u = r * k.sh - k.top; u < r * k.sh - k.top + k.kh; ++u)
    for (int v = x * k.sw - k.left; v < x * k.sw - k.left + k.kw; ++v)
      if (u >= 0 && u < k.h && v >= 0 && v < k.w) f(u, v);
}

}  // namespace rw_test
