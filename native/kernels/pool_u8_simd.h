// maxpool_u8, avgpool_u8, nearest, linear_u8 with vectors.
//
// A maximum over a window is taken in two steps: over its rows into a line buffer, then over the columns of the buffer. Code 0
// changes no maximum, so zeros on both sides of the line stand for the positions outside the image.
#pragma once
#include "codes_simd.h"

namespace rw {
namespace {

constexpr int line_bytes = 32768;  // on the stack

struct Range {
  int begin, end;
};

Range inside(int first, int k, int size) {
  const int begin = first < 0 ? 0 : first, end = first + k > size ? size : first + k;
  return {begin, end < begin ? begin : end};
}

// y[i] = the largest of x[i], x[i + step], ... (count of them; none gives 0), for n bytes.
void largest(const uint8_t* x, int64_t step, int count, uint8_t* y, int64_t n) {
  const auto body = [&](int64_t i, auto... rest) {
    if (count == 0) {
      const uint8_t zeros[byte_lanes] = {};
      return store_bytes(y + i, load_bytes(zeros), rest...);
    }
    Bytes best = load_bytes(x + i, rest...);
    for (int k = 1; k < count; ++k) best = larger(best, load_bytes(x + i + k * step, rest...));
    store_bytes(y + i, best, rest...);
  };
  int64_t i = 0;
  for (; i + byte_lanes <= n; i += byte_lanes) body(i);
  if (i < n) body(i, static_cast<int>(n - i));
}

// Channels [first, first + count) of the rows; the line holds count bytes per column.
void maxpool_channels(const Image& x, const Image& y, const PoolParams& p, int begin, int end, int first, int count, uint8_t* line) {
  // Columns of the line are those of the image from -pad_left; behind the image there are as many as the last window needs.
  const int64_t columns = (static_cast<int64_t>(y.w) - 1) * p.sw + p.kw;
  const int64_t image = columns - p.pad_left < x.w ? columns - p.pad_left : x.w;
  const bool x_flat = x.pixel == count, y_flat = y.pixel == count && p.sw == 1;
  std::memset(line, 0, static_cast<size_t>(columns) * count);
  for (int r = begin; r < end; ++r) {
    const Range rows = inside(r * p.sh - p.pad_top, p.kh, x.h);
    uint8_t* to = line + static_cast<int64_t>(p.pad_left) * count;
    for (int64_t i = 0; i < (x_flat ? 1 : image); ++i)
      largest(pixel_at(x, rows.begin, i) + first, x.row, rows.end - rows.begin, to + i * count, x_flat ? image * count : count);
    for (int i = 0; i < (y_flat ? 1 : y.w); ++i)
      largest(line + static_cast<int64_t>(i) * p.sw * count, count, p.kw, pixel_at(y, r, i) + first, y_flat ? static_cast<int64_t>(y.w) * count : count);
  }
}

void maxpool_rows(const Image& x, const Image& y, const PoolParams& p, int begin, int end) {
  alignas(64) uint8_t line[line_bytes];
  const int64_t columns = (static_cast<int64_t>(y.w) - 1) * p.sw + p.kw;
  int64_t room = line_bytes / columns;  // channels
  if (room < y.c) room -= room % 64;
  if (room < 1 || p.pad_left >= columns) return maxpool_u8_portable(x, y, p, begin, end);
  for (int first = 0; first < y.c; first += static_cast<int>(room)) {
    const int count = y.c - first < room ? y.c - first : static_cast<int>(room);
    maxpool_channels(x, y, p, begin, end, first, count, line);
  }
}

void avgpool_rows(const Image& x, const Image& y, const PoolParams& p, int begin, int end) {
  const Ints zy = ints(p.zy), lo = ints(0), hi = ints(255);
  for (int r = begin; r < end; ++r) {
    const Range rows = inside(r * p.sh - p.pad_top, p.kh, x.h);
    for (int i = 0; i < y.w; ++i) {
      const Range columns = inside(i * p.sw - p.pad_left, p.kw, x.w);
      const int n = (rows.end - rows.begin) * (columns.end - columns.begin);
      const Floats m = floats(p.m[p.count_padding ? p.kh * p.kw : n]);
      uint8_t* out = pixel_at(y, r, i);
      const auto body = [&](int c, auto... rest) {
        Ints sum = ints(-n * p.zx);
        for (int u = rows.begin; u < rows.end; ++u) {
          const uint8_t* in = pixel_at(x, u, columns.begin) + c;
          for (int v = columns.begin; v < columns.end; ++v, in += x.pixel) sum = sum + load_codes(in, rest...);
        }
        store_codes(out + c, to_codes(to_floats(sum) * m, zy, lo, hi), rest...);
      };
      int c = 0;
      for (; c + 16 <= y.c; c += 16) body(c);
      if (c < y.c) body(c, y.c - c);
    }
  }
}

void copy_bytes(const uint8_t* x, uint8_t* y, int64_t n) {
  int64_t i = 0;
  for (; i + byte_lanes <= n; i += byte_lanes) store_bytes(y + i, load_bytes(x + i));
  if (i < n) store_bytes(y + i, load_bytes(x + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

void nearest_pixels(const Image& x, const Image& y, int element_bytes, const int32_t* row, const int32_t* column, int begin, int end) {
  const int64_t bytes = static_cast<int64_t>(y.c) * element_bytes;
  for (int r = begin; r < end; ++r)
    for (int i = 0; i < y.w; ++i) copy_bytes(pixel_at(x, row[r], column[i]), pixel_at(y, r, i), bytes);
}

void linear_pixels(const Image& x, const Image& y, const LinearParams& p, int begin, int end) {
  const Ints zero = ints(0), hi = ints(255);
  for (int r = begin; r < end; ++r) {
    const Floats wy = floats(p.wy[r]), vy = floats(1.0f - p.wy[r]);
    for (int i = 0; i < y.w; ++i) {
      const uint8_t *p00 = pixel_at(x, p.row0[r], p.column0[i]), *p01 = pixel_at(x, p.row0[r], p.column1[i]);
      const uint8_t *p10 = pixel_at(x, p.row1[r], p.column0[i]), *p11 = pixel_at(x, p.row1[r], p.column1[i]);
      const Floats wx = floats(p.wx[i]), vx = floats(1.0f - p.wx[i]);
      uint8_t* out = pixel_at(y, r, i);
      const auto body = [&](int c, auto... rest) {
        const Floats top = to_floats(load_codes(p00 + c, rest...)) * vx + to_floats(load_codes(p01 + c, rest...)) * wx;
        const Floats bottom = to_floats(load_codes(p10 + c, rest...)) * vx + to_floats(load_codes(p11 + c, rest...)) * wx;
        store_codes(out + c, to_codes(top * vy + bottom * wy, zero, zero, hi), rest...);
      };
      int c = 0;
      for (; c + 16 <= y.c; c += 16) body(c);
      if (c < y.c) body(c, y.c - c);
    }
  }
}

}  // namespace
}  // namespace rw
