// conv_u8, portable: plain loops that a compiler turns into vector code (SSE2, NEON) by itself.
//
// Weights are kept as s16, 16 output channels side by side for every k, so that the inner loop is
// `acc[c] += x * w[c]` on 16 neighbouring channels: a widening multiply-add on every machine. Two pixels share a weight.
#include <cstring>

#include "kernels.h"

namespace rw {
namespace {

constexpr int kLanes = 16;

// The head of the packed block; arrays follow: bias, scale, zero, out scale (padded to whole blocks), weights.
struct Head {
  int32_t kind, lo, hi, unary;
  float unary_a, unary_b, poly_a, poly_b;
  float poly[96];
  uint8_t table[256];
};

int padded(int n) { return (n + kLanes - 1) / kLanes * kLanes; }

struct View {
  const Head* head;
  const int32_t *bias, *zero;
  const float *scale, *out_scale;
  const int16_t* weights;  // [block][tap][k][16]
};

View view(const ConvShape& s, const void* packed) {
  const size_t n = padded(s.n);
  const auto* p = static_cast<const uint8_t*>(packed);
  View v;
  v.head = reinterpret_cast<const Head*>(p);
  v.bias = reinterpret_cast<const int32_t*>(p + sizeof(Head));
  v.zero = v.bias + n;
  v.scale = reinterpret_cast<const float*>(v.zero + n);
  v.out_scale = v.scale + n;
  v.weights = reinterpret_cast<const int16_t*>(v.out_scale + n);
  return v;
}

size_t packed_bytes(const ConvShape& s) {
  const size_t n = padded(s.n);
  return sizeof(Head) + 16 * n + sizeof(int16_t) * n * s.taps * s.k;
}

void pack(const ConvShape& s, const ConvWeights& c, void* packed) {
  memset(packed, 0, packed_bytes(s));
  const Epilogue& e = c.e;
  const View v = view(s, packed);
  Head& head = *static_cast<Head*>(packed);
  head.kind = static_cast<int>(e.kind);
  const bool clamps = e.kind == EpilogueKind::linear;
  head.lo = clamps ? e.lo : 0, head.hi = clamps ? e.hi : 255, head.unary = e.unary;
  head.unary_a = e.unary_a, head.unary_b = e.unary_b, head.poly_a = e.poly_a, head.poly_b = e.poly_b;
  if (e.kind == EpilogueKind::poly) memcpy(head.poly, e.poly, sizeof head.poly);
  if (e.kind == EpilogueKind::table) memcpy(head.table, e.table, sizeof head.table);
  memcpy(const_cast<int32_t*>(v.bias), e.bias, 4 * s.n);
  memcpy(const_cast<float*>(v.scale), e.scale, 4 * s.n);
  if (e.kind != EpilogueKind::real) memcpy(const_cast<int32_t*>(v.zero), e.zero, 4 * s.n);
  if (e.kind == EpilogueKind::poly) memcpy(const_cast<float*>(v.out_scale), e.out_scale, 4 * s.n);
  const auto* w = static_cast<const int8_t*>(c.w);
  auto* to = const_cast<int16_t*>(v.weights);
  const size_t depth = static_cast<size_t>(s.taps) * s.k;
  for (int n = 0; n < s.n; ++n)
    for (size_t i = 0; i < depth; ++i) to[(n / kLanes * depth + i) * kLanes + n % kLanes] = w[n * depth + i];
}

float clamp(float x, float lo, float hi) {
  x = x > lo ? x : lo;
  return x < hi ? x : hi;
}

// rint(x), half to even, clamped to int16. Adding 1.5 * 2^23 leaves no bits below one, and unlike rintf it vectorizes everywhere.
int round_to_int16(float x) {
  const float magic = 12582912.0f;
  return static_cast<int>((clamp(x, -32768.0f, 32767.0f) + magic) - magic);
}

int clamp(int x, int lo, int hi) {
  x = x > lo ? x : lo;
  return x < hi ? x : hi;
}

// 16 accumulators of block `c0` to codes.
void requantize(const View& v, int c0, const int32_t* acc, uint8_t* out) {
  const Head& h = *v.head;
  const float* scale = v.scale + c0;
  const int32_t* zero = v.zero + c0;
  if (h.kind == static_cast<int>(EpilogueKind::poly)) {
    const float* r = v.out_scale + c0;
    for (int c = 0; c < kLanes; ++c) {
      const float x = static_cast<float>(acc[c]) * scale[c];
      const int i = static_cast<int>(clamp(x * h.poly_a + h.poly_b, 0.0f, 31.0f));
      const float f = (h.poly[64 + i] * x + h.poly[32 + i]) * x + h.poly[i];
      out[c] = static_cast<uint8_t>(clamp(round_to_int16(f * r[c]) + zero[c], 0, 255));
    }
    return;
  }
  for (int c = 0; c < kLanes; ++c)
    out[c] = static_cast<uint8_t>(clamp(round_to_int16(static_cast<float>(acc[c]) * scale[c]) + zero[c], h.lo, h.hi));
  if (h.kind == static_cast<int>(EpilogueKind::table))
    for (int c = 0; c < kLanes; ++c) out[c] = h.table[out[c]];
}

void finish(const ConvShape& s, const View& v, int c0, const int32_t* acc, uint8_t* y) {
  const int width = s.n - c0 < kLanes ? s.n - c0 : kLanes;
  if (s.out_float) {
    float out[kLanes];
    for (int c = 0; c < kLanes; ++c) out[c] = static_cast<float>(acc[c]) * v.scale[c0 + c];
    memcpy(y + 4 * c0, out, 4 * width);
  } else {
    uint8_t out[kLanes];
    requantize(v, c0, acc, out);
    memcpy(y + c0, out, width);
  }
}

// Two pixels by one block of channels. With a single pixel left, xb == xa and yb == ya.
void tile(const ConvShape& s, const ConvRun& r, const View& v, int c0, const uint8_t* xa, const uint8_t* xb, uint8_t* ya,
          uint8_t* yb) {
  int32_t a[kLanes], b[kLanes];
  for (int c = 0; c < kLanes; ++c) a[c] = b[c] = v.bias[c0 + c];
  const int16_t* w = v.weights + static_cast<size_t>(c0) * s.taps * s.k;
  for (int t = 0; t < s.taps; ++t) {
    const uint8_t *pa = xa + r.tap[t], *pb = xb + r.tap[t];
    for (int k = 0; k < s.k; ++k, w += kLanes) {
      const int16_t qa = pa[k], qb = pb[k];
      for (int c = 0; c < kLanes; ++c) {
        a[c] += qa * w[c];
        b[c] += qb * w[c];
      }
    }
  }
  finish(s, v, c0, a, ya);
  finish(s, v, c0, b, yb);
}

void run(const ConvShape& s, const ConvRun& r, int64_t pixel_begin, int64_t pixel_end) {
  const View v = view(s, r.packed);
  auto* y = static_cast<uint8_t*>(r.y);
  for (int64_t m = pixel_begin; m < pixel_end; m += 2) {
    const int64_t last = m + 1 < pixel_end ? m + 1 : m;
    const int64_t ia = m / r.out_w, ja = m % r.out_w, ib = last / r.out_w, jb = last % r.out_w;
    for (int c0 = 0; c0 < s.n; c0 += kLanes)
      tile(s, r, v, c0, r.x + ia * r.x_row + ja * r.x_pixel, r.x + ib * r.x_row + jb * r.x_pixel,
           y + ia * r.y_row + ja * r.y_pixel, y + ib * r.y_row + jb * r.y_pixel);
  }
}

}  // namespace

const ConvKernel conv_u8_portable = {packed_bytes, pack, run, 2};

}  // namespace rw
