// Maximum, average and linear interpolation over images of floats, W channels at a time; compiled once per path.
#pragma once
#include "kernels.h"
#include "simd_f32.h"

namespace rw {
namespace {

RW_INLINE const float* at(const Image& x, int row, int column, int c) {
  return reinterpret_cast<const float*>(static_cast<const uint8_t*>(x.data) + row * x.row + column * x.pixel) + c;
}
RW_INLINE float* to(const Image& y, int row, int column, int c) { return const_cast<float*>(at(y, row, column, c)); }

// Positions [begin, end) of the input that window `i` covers inside an axis of `size`.
struct Window { int begin, end; };
RW_INLINE Window window(int i, int kernel, int stride, int pad, int size) {
  const int begin = i * stride - pad;
  return {larger(begin, 0), smaller(begin + kernel, size)};
}

// The larger one, or NaN where either is NaN (greatest passes on only its second operand's).
RW_INLINE V larger_of(V a, V b) { return if_nan(a, a, greatest(a, b)); }

constexpr int kColumns = 512;

// Maxima of each column first, then of kw neighbouring columns: kh + kw steps in place of kh * kw.
void maxpool_rows(const Image& x, const Image& y, const PoolParams& p, int begin, int end) {
  alignas(64) float columns[kColumns * W];
  const int step = larger(1, (kColumns - p.kw) / p.sw + 1);  // outputs whose columns fit the buffer
  for (int row = begin; row < end; row++) {
    const Window rows = window(row, p.kh, p.sh, p.pad_top, x.h);
    for (int c = 0; c < y.c; c += W) {
      const int n = smaller(W, y.c - c);
      const V lowest = set(-__builtin_inff());
      for (int first_out = 0; first_out < y.w; first_out += step) {
        const int last_out = smaller(first_out + step, y.w) - 1;
        const int from = window(first_out, p.kw, p.sw, p.pad_left, x.w).begin;
        const int until = window(last_out, p.kw, p.sw, p.pad_left, x.w).end;
        const bool buffered = until - from <= kColumns && p.kw > 1;
        if (buffered)
          for (int column = from; column < until; column++) {
            V v = lowest;
            for (int r = rows.begin; r < rows.end; r++) v = larger_of(load(at(x, r, column, c), n), v);
            store(columns + (column - from) * W, v);
          }
        for (int out = first_out; out <= last_out; out++) {
          const Window w = window(out, p.kw, p.sw, p.pad_left, x.w);
          V v = lowest;
          for (int column = w.begin; column < w.end; column++) {
            if (buffered) { v = larger_of(load(columns + (column - from) * W), v); continue; }
            for (int r = rows.begin; r < rows.end; r++) v = larger_of(load(at(x, r, column, c), n), v);
          }
          store(to(y, row, out, c), v, n);
        }
      }
    }
  }
}

// The sum over the window divided by the number of positions inside the image, or by kh*kw when padding counts.
void avgpool_rows(const Image& x, const Image& y, const PoolParams& p, int begin, int end) {
  for (int row = begin; row < end; row++) {
    const Window rows = window(row, p.kh, p.sh, p.pad_top, x.h);
    for (int out = 0; out < y.w; out++) {
      const Window w = window(out, p.kw, p.sw, p.pad_left, x.w);
      const int inside = larger(rows.end - rows.begin, 0) * larger(w.end - w.begin, 0);
      const V count = set(static_cast<float>(p.count_padding ? p.kh * p.kw : larger(inside, 1)));
      for (int c = 0; c < y.c; c += W) {
        const int n = smaller(W, y.c - c);
        V sum = set(0.0f);
        for (int r = rows.begin; r < rows.end; r++) {
          V part = set(0.0f);  // by rows: the error grows with kh + kw, not with kh * kw
          for (int column = w.begin; column < w.end; column++) part = part + load(at(x, r, column, c), n);
          sum = sum + part;
        }
        store(to(y, row, out, c), sum / count, n);
      }
    }
  }
}

void linear_rows(const Image& x, const Image& y, const LinearParams& p, int begin, int end) {
  for (int row = begin; row < end; row++) {
    const V wy = set(p.wy[row]), vy = set(1.0f) - wy;
    for (int out = 0; out < y.w; out++) {
      const V wx = set(p.wx[out]), vx = set(1.0f) - wx;
      const int r0 = p.row0[row], r1 = p.row1[row], c0 = p.column0[out], c1 = p.column1[out];
      for (int c = 0; c < y.c; c += W) {
        const int n = smaller(W, y.c - c);
        const V upper = load(at(x, r0, c0, c), n) * vx + load(at(x, r0, c1, c), n) * wx;
        const V lower = load(at(x, r1, c0, c), n) * vx + load(at(x, r1, c1, c), n) * wx;
        store(to(y, row, out, c), upper * vy + lower * wy, n);
      }
    }
  }
}

}  // namespace
}  // namespace rw
