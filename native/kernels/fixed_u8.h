// The fixed-point form (docs/engine.md, "Fixed point") in plain loops, for every path: the operations on codes that multiply
// (but for Add, see fixed_plain.h). Everything is integers:
//
//     scale32(v, m, s) = (v * m + 2^(s-1)) >> s          in 64 bits, an arithmetic shift: halves are rounded up
//
// Results go to a buffer of their own first: bytes may alias anything, and a loop that stores them could not be vectorized.
#pragma once
#include <cstring>

#include "kernels.h"
#include "scalar.h"

namespace rw {
namespace {

constexpr int kFixedChunk = 64;   // channels at a time

inline __attribute__((always_inline)) int64_t scale32(int64_t v, int32_t m, int32_t s) { return (v * m + (int64_t{1} << (s - 1))) >> s; }
inline __attribute__((always_inline)) int32_t clamp_wide(int64_t v, int32_t lo, int32_t hi) {
  return static_cast<int32_t>(v < lo ? lo : v > hi ? hi : v);
}

void fixed_mul(const Image& a, const Image& b, const Image& y, const MulFixedParams& p, int begin, int end) {
  uint8_t out[kFixedChunk];
  for (int r = begin; r < end; ++r)
    for (int x = 0; x < y.w; ++x)
      for (int first = 0; first < y.c; first += kFixedChunk) {
        const uint8_t *pa = byte_at(a, r, x) + first, *pb = byte_at(b, r, x) + first;
        const int n = y.c - first < kFixedChunk ? y.c - first : kFixedChunk;
        for (int c = 0; c < n; ++c)
          out[c] = static_cast<uint8_t>(clamp_wide(scale32((pa[c] - p.za) * (pb[c] - p.zb), p.m, p.s) + p.zy, p.lo, p.hi));
        std::memcpy(byte_at(y, r, x) + first, out, static_cast<size_t>(n));
      }
}

// The positions of a window of k at `first` that lie inside 0..size.
struct FixedRange {
  int begin, end;
  FixedRange(int first, int k, int size) : begin(first < 0 ? 0 : first), end(first + k > size ? size : first + k) {
    if (end < begin) end = begin;
  }
};

void fixed_avgpool(const Image& x, const Image& y, const PoolFixedParams& p, int begin, int end) {
  int32_t sum[kFixedChunk];
  for (int r = begin; r < end; ++r) {
    const FixedRange rows(r * p.sh - p.pad_top, p.kh, x.h);
    for (int i = 0; i < y.w; ++i) {
      const FixedRange columns(i * p.sw - p.pad_left, p.kw, x.w);
      const int count = (rows.end - rows.begin) * (columns.end - columns.begin), at = p.count_padding ? p.kh * p.kw : count;
      for (int first = 0; first < y.c; first += kFixedChunk) {
        const int n = y.c - first < kFixedChunk ? y.c - first : kFixedChunk;
        for (int c = 0; c < n; ++c) sum[c] = -count * p.zx;
        for (int u = rows.begin; u < rows.end; ++u)
          for (int v = columns.begin; v < columns.end; ++v) {
            const uint8_t* in = byte_at(x, u, v) + first;
            for (int c = 0; c < n; ++c) sum[c] += in[c];
          }
        uint8_t* out = byte_at(y, r, i) + first;
        for (int c = 0; c < n; ++c) out[c] = static_cast<uint8_t>(clamp_wide(scale32(sum[c], p.m[at], p.s[at]) + p.zy, 0, 255));
      }
    }
  }
}

void fixed_linear(const Image& x, const Image& y, const LinearFixedParams& p, int begin, int end) {
  uint8_t out[kFixedChunk];
  for (int r = begin; r < end; ++r)
    for (int i = 0; i < y.w; ++i) {
      const int wx = p.wx[i], wy = p.wy[r];
      for (int first = 0; first < y.c; first += kFixedChunk) {
        const uint8_t *p00 = byte_at(x, p.row0[r], p.column0[i]) + first, *p01 = byte_at(x, p.row0[r], p.column1[i]) + first;
        const uint8_t *p10 = byte_at(x, p.row1[r], p.column0[i]) + first, *p11 = byte_at(x, p.row1[r], p.column1[i]) + first;
        const int n = y.c - first < kFixedChunk ? y.c - first : kFixedChunk;
        for (int c = 0; c < n; ++c) {
          const int32_t upper = p00[c] * (2048 - wx) + p01[c] * wx, lower = p10[c] * (2048 - wx) + p11[c] * wx;
          out[c] = static_cast<uint8_t>((upper * (2048 - wy) + lower * wy + (1 << 21)) >> 22);
        }
        std::memcpy(byte_at(y, r, i) + first, out, static_cast<size_t>(n));
      }
    }
}

}  // namespace
}  // namespace rw
