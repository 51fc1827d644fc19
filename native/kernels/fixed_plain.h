// The epilogues of the fixed-point form and its Add in plain loops, for the paths without vector versions of their own.
#pragma once
#include "fixed_u8.h"

namespace rw {
namespace {

// The interpolated table: p in -32768..32767, 128 times the value.
inline __attribute__((always_inline)) int32_t curve_at(const int16_t* curve, int32_t p) {
  const int32_t i = (p >> 7) + 256, f = p & 127;
  return curve[i] * 128 + (curve[i + 1] - curve[i]) * f;
}

// Channels [first, first + n) of every pixel go through `codes(acc, first, n, out)`.
template <class F>
inline __attribute__((always_inline)) void each_chunk(int channels, const int32_t* acc, uint8_t* y, int64_t y_pixel, int64_t pixels, const F& codes) {
  uint8_t out[kFixedChunk];
  for (int64_t i = 0; i < pixels; ++i, acc += channels, y += y_pixel)
    for (int first = 0; first < channels; first += kFixedChunk) {
      const int n = channels - first < kFixedChunk ? channels - first : kFixedChunk;
      codes(acc + first, first, n, out);
      std::memcpy(y + first, out, static_cast<size_t>(n));
    }
}

void fixed_add(const Image& a, const Image& b, const Image& y, const AddFixedParams& p, int begin, int end) {
  uint8_t out[kFixedChunk];
  for (int r = begin; r < end; ++r)
    for (int x = 0; x < y.w; ++x)
      for (int first = 0; first < y.c; first += kFixedChunk) {
        const uint8_t *pa = byte_at(a, r, x) + first, *pb = byte_at(b, r, x) + first;
        const int32_t *ma = p.a + first, *mb = p.b + first, *s = p.s + first, *zero = p.zero + first;
        const int n = y.c - first < kFixedChunk ? y.c - first : kFixedChunk;
        for (int c = 0; c < n; ++c) {
          const int32_t sum = (pa[c] - p.za) * ma[c] + (pb[c] - p.zb) * mb[c];   // below 2^30
          out[c] = static_cast<uint8_t>(clamp_int(((sum + (int32_t{1} << (s[c] - 1))) >> s[c]) + zero[c], p.lo, p.hi));
        }
        std::memcpy(byte_at(y, r, x) + first, out, static_cast<size_t>(n));
      }
}

// The head of the packed constants; m, s, zero, m2, s2, zero2 follow, n entries each (curve; the other kinds have three of them).
struct FixedHead {
  FixedKind kind;
  int32_t n, lo, hi;
  uint8_t table[256];
  int16_t curve[kCurveEntries + 1];
};

size_t fixed_packed_bytes(int n) { return sizeof(FixedHead) + static_cast<size_t>(n) * 24; }

void fixed_pack(const FixedEpilogue& e, void* packed) {
  std::memset(packed, 0, fixed_packed_bytes(e.n));
  FixedHead& head = *static_cast<FixedHead*>(packed);
  const bool curve = e.kind == FixedKind::curve;
  head.kind = e.kind, head.n = e.n, head.lo = e.lo, head.hi = e.hi;
  if (e.kind == FixedKind::table) std::memcpy(head.table, e.table, 256);
  if (curve) std::memcpy(head.curve, e.curve, sizeof(int16_t) * kCurveEntries);
  const int32_t* const arrays[6] = {e.m, e.s, e.zero, e.m2, e.s2, e.zero2};
  uint8_t* at = static_cast<uint8_t*>(packed) + sizeof head;
  for (int i = 0; i < (curve ? 6 : 3); ++i, at += static_cast<size_t>(e.n) * 4) std::memcpy(at, arrays[i], static_cast<size_t>(e.n) * 4);
}

void fixed_run(const void* packed, const int32_t* accumulators, uint8_t* y, int64_t y_pixel, int64_t pixels) {
  const FixedHead& h = *static_cast<const FixedHead*>(packed);
  const auto* m = reinterpret_cast<const int32_t*>(&h + 1);
  const int32_t *s = m + h.n, *zero = s + h.n;
  const int lo = h.lo, hi = h.hi;
  if (h.kind == FixedKind::clamp) {
    each_chunk(h.n, accumulators, y, y_pixel, pixels, [&](const int32_t* acc, int first, int n, uint8_t* out) {
      for (int c = 0; c < n; ++c) out[c] = static_cast<uint8_t>(clamp_wide(scale32(acc[c], m[first + c], s[first + c]) + zero[first + c], lo, hi));
    });
  } else if (h.kind == FixedKind::table) {
    each_chunk(h.n, accumulators, y, y_pixel, pixels, [&](const int32_t* acc, int first, int n, uint8_t* out) {
      for (int c = 0; c < n; ++c) out[c] = h.table[clamp_wide(scale32(acc[c], m[first + c], s[first + c]) + zero[first + c], 0, 255)];
    });
  } else {
    const int32_t *m2 = zero + h.n, *s2 = m2 + h.n, *zero2 = s2 + h.n;
    each_chunk(h.n, accumulators, y, y_pixel, pixels, [&](const int32_t* acc, int first, int n, uint8_t* out) {
      for (int i = 0; i < n; ++i) {
        const int c = first + i;
        const int32_t v = curve_at(h.curve, clamp_wide(scale32(acc[i], m[c], s[c]) + zero[c], -32768, 32767));
        out[i] = static_cast<uint8_t>(clamp_wide(scale32(v, m2[c], s2[c]) + zero2[c], lo, hi));
      }
    });
  }
}

}  // namespace
}  // namespace rw
