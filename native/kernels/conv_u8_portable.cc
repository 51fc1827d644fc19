// conv_u8, portable: plain loops that a compiler turns into vector code (SSE2, NEON) by itself.
//
// Weights are kept as s16 in their canonical order, and the activations of a pixel are gathered and widened to s16 as well: then
// `sum += x[k] * w[k]` is the dot product of 16-bit numbers that every vector instruction set has (pmaddwd, smlal). Four
// channels share the activations they read.
#include <cstring>

#include "float_math.h"
#include "kernels.h"

namespace rw {
namespace {

constexpr int kLanes = 16;   // channels that go through the epilogue together
constexpr int kWhole = 8;    // products that are summed up together
constexpr int kGather = 512;  // activations gathered at a time

// The head of the packed block; arrays follow: bias, scale, zero, out scale (padded to whole blocks), weights.
struct Head {
  int32_t kind, lo, hi, unary, raw;  // raw: accumulators as they are
  float unary_a, unary_b, poly_b;
  float poly[96];
  uint8_t table[kFineEntries];
};

int padded(int n) { return (n + kLanes - 1) / kLanes * kLanes; }
int depth_of(const ConvShape& s) { return s.taps * s.k; }
int padded_depth(const ConvShape& s) { return (depth_of(s) + kWhole - 1) / kWhole * kWhole; }

struct View {
  const Head* head;
  const int32_t *bias, *zero;
  const float *scale, *out_scale;
  const int16_t* weights;  // [channel][tap, k], every channel padded with zeros to kWhole
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
  return sizeof(Head) + 16 * n + sizeof(int16_t) * n * padded_depth(s);
}

void pack(const ConvShape& s, const ConvWeights& c, void* packed) {
  memset(packed, 0, packed_bytes(s));
  const Epilogue& e = c.e;
  const View v = view(s, packed);
  Head& head = *static_cast<Head*>(packed);
  head.kind = static_cast<int>(e.kind);
  const bool clamps = e.kind == EpilogueKind::linear;
  const int entries = e.kind == EpilogueKind::table ? 256 : e.kind == EpilogueKind::fine ? kFineEntries : 0;
  head.lo = clamps ? e.lo : 0, head.hi = clamps ? e.hi : entries ? entries - 1 : 255, head.unary = e.unary;
  head.unary_a = e.unary_a, head.unary_b = e.unary_b, head.poly_b = e.poly_b;
  if (e.kind == EpilogueKind::poly) memcpy(head.poly, e.poly, sizeof head.poly);
  if (entries) memcpy(head.table, e.table, entries);
  memcpy(const_cast<int32_t*>(v.bias), e.bias, 4 * s.n);
  head.raw = e.scale == nullptr;
  if (e.scale) memcpy(const_cast<float*>(v.scale), e.scale, 4 * s.n);
  if (e.kind != EpilogueKind::real) memcpy(const_cast<int32_t*>(v.zero), e.zero, 4 * s.n);
  if (e.kind == EpilogueKind::poly) memcpy(const_cast<float*>(v.out_scale), e.out_scale, 4 * s.n);
  const auto* w = static_cast<const int8_t*>(c.w);
  auto* to = const_cast<int16_t*>(v.weights);
  for (int n = 0; n < s.n; ++n, to += padded_depth(s))
    for (int i = 0; i < depth_of(s); ++i) to[i] = *w++;
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
      const int i = static_cast<int>(clamp(x + h.poly_b, 0.0f, 31.0f));
      const float f = (h.poly[64 + i] * x + h.poly[32 + i]) * x + h.poly[i];
      out[c] = static_cast<uint8_t>(clamp(round_to_int16(f * r[c]) + zero[c], 0, 255));
    }
    return;
  }
  int q[kLanes];
  for (int c = 0; c < kLanes; ++c) q[c] = clamp(round_to_int16(static_cast<float>(acc[c]) * scale[c]) + zero[c], h.lo, h.hi);
  if (h.kind == static_cast<int>(EpilogueKind::linear))
    for (int c = 0; c < kLanes; ++c) out[c] = static_cast<uint8_t>(q[c]);
  else
    for (int c = 0; c < kLanes; ++c) out[c] = h.table[q[c]];
}

void finish(const ConvShape& s, const View& v, int c0, const int32_t* acc, uint8_t* y) {
  const int width = s.n - c0 < kLanes ? s.n - c0 : kLanes;
  if (s.out_float && v.head->raw) {
    memcpy(y + 4 * c0, acc, 4 * width);
  } else if (s.out_float) {
    float out[kLanes];
    for (int c = 0; c < kLanes; ++c) out[c] = static_cast<float>(acc[c]) * v.scale[c0 + c];
    const Head& h = *v.head;
    if (h.unary != kNone) apply_unary(out, out, width, h.unary, h.unary_a, h.unary_b);
    memcpy(y + 4 * c0, out, 4 * width);
  } else {
    uint8_t out[kLanes];
    requantize(v, c0, acc, out);
    memcpy(y + c0, out, width);
  }
}

// Activations `from` to `to` of all taps in a row, widened; zeros behind the last.
void gather(const ConvShape& s, const ConvRun& r, const uint8_t* x, int from, int to, int16_t* out) {
  const int end = to < depth_of(s) ? to : depth_of(s);
  for (int i = from; i < end;) {
    const int k = i % s.k, count = s.k - k < end - i ? s.k - k : end - i;
    const uint8_t* p = x + r.tap[i / s.k] + k;
    for (int c = 0; c < count; ++c) out[c] = p[c];
    i += count, out += count;
  }
  for (int i = end; i < to; ++i) *out++ = 0;
}

// Adds the products of four channels, whose weights are `depth` apart. Channels that only pad have zeros for weights.
void dot_4(const int16_t* x, const int16_t* w0, int depth, int count, int32_t* acc) {
  const int16_t *w1 = w0 + depth, *w2 = w1 + depth, *w3 = w2 + depth;
  const int whole = count / kWhole * kWhole;  // is count; tells the compiler that nothing remains
  int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0;
  for (int k = 0; k < whole; ++k) {
    a0 += x[k] * w0[k];
    a1 += x[k] * w1[k];
    a2 += x[k] * w2[k];
    a3 += x[k] * w3[k];
  }
  acc[0] += a0, acc[1] += a1, acc[2] += a2, acc[3] += a3;
}

void run(const ConvShape& s, const ConvRun& r, int64_t pixel_begin, int64_t pixel_end) {
  const View v = view(s, r.packed);
  const int depth = padded_depth(s);
  for (int64_t m = pixel_begin; m < pixel_end; ++m) {
    const int64_t i = m / r.out_w, j = m % r.out_w;
    const uint8_t* x = r.x + i * r.x_row + j * r.x_pixel;
    int16_t gathered[kGather];
    if (depth <= kGather) gather(s, r, x, 0, depth, gathered);
    for (int c0 = 0; c0 < s.n; c0 += kLanes) {
      int32_t acc[kLanes];
      memcpy(acc, v.bias + c0, sizeof acc);
      for (int from = 0; from < depth; from += kGather) {
        const int to = from + kGather < depth ? from + kGather : depth;
        if (depth > kGather) gather(s, r, x, from, to, gathered);
        for (int c = 0; c < kLanes && c0 + c < s.n; c += 4)
          dot_4(gathered, v.weights + static_cast<size_t>(c0 + c) * depth + from, depth, to - from, acc + c);
      }
      finish(s, v, c0, acc, static_cast<uint8_t*>(r.y) + i * r.y_row + j * r.y_pixel);
    }
  }
}

}  // namespace

const ConvKernel conv_u8_portable = {packed_bytes, pack, run, 1};

}  // namespace rw
