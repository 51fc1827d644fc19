// Depthwise convolution on codes: acc[c] = sum x * w + bias, then the epilogue, for up to 64 channels of a pixel at a time.
#include <cstring>

#include "kernels.h"
#include "scalar.h"

namespace rw {
namespace {

// What pack() writes: this head, then bias, scale, zero, out scale (4 bytes each, c entries) and the weights [kh*kw][c].
struct Head {
  Epilogue e;  // scalars only; its pointers are not used
  uint8_t table[kFineEntries];
  float poly[96];
  bool raw;  // real: accumulators as they are
};

struct Constants {
  const int32_t* bias;
  const float* scale;
  const int32_t* zero;
  const float* out_scale;
  const int8_t* w;
};

Constants constants(const void* packed, int c) {
  const uint8_t* at = static_cast<const uint8_t*>(packed) + sizeof(Head);
  const size_t step = static_cast<size_t>(c) * 4;
  return {reinterpret_cast<const int32_t*>(at), reinterpret_cast<const float*>(at + step), reinterpret_cast<const int32_t*>(at + 2 * step),
          reinterpret_cast<const float*>(at + 3 * step), reinterpret_cast<const int8_t*>(at + 4 * step)};
}

size_t packed_bytes(const DepthwiseShape& s) { return sizeof(Head) + static_cast<size_t>(s.c) * (16 + s.kh * s.kw); }

// Absent entries (no epilogue reads them) become zero.
void copy(uint8_t*& at, const void* from, size_t bytes) {
  if (from)
    std::memcpy(at, from, bytes);
  else
    std::memset(at, 0, bytes);
  at += bytes;
}

void pack(const DepthwiseShape& s, const ConvWeights& w, void* packed) {
  Head head;
  std::memset(&head, 0, sizeof head);
  head.e = w.e;
  head.raw = w.e.scale == nullptr;
  if (w.e.kind == EpilogueKind::table) std::memcpy(head.table, w.e.table, 256);
  if (w.e.kind == EpilogueKind::fine) std::memcpy(head.table, w.e.table, kFineEntries);
  if (w.e.kind == EpilogueKind::poly) std::memcpy(head.poly, w.e.poly, sizeof head.poly);
  uint8_t* at = static_cast<uint8_t*>(packed);
  const size_t step = static_cast<size_t>(s.c) * 4;
  copy(at, &head, sizeof head);
  copy(at, w.e.bias, step);
  copy(at, w.e.scale, step);
  copy(at, w.e.kind == EpilogueKind::real ? nullptr : w.e.zero, step);
  copy(at, w.e.kind == EpilogueKind::poly ? w.e.out_scale : nullptr, step);
  copy(at, w.w, static_cast<size_t>(s.kh) * s.kw * s.c);
}

uint8_t poly_code(const Head& head, const Constants& k, int c, float v) {
  float t = v + head.e.poly_b;
  t = t > 0.0f ? t : 0.0f;
  t = t < 31.0f ? t : 31.0f;
  const int i = static_cast<int>(t);
  const float f = (head.poly[64 + i] * v + head.poly[32 + i]) * v + head.poly[i];
  return to_code(f * k.out_scale[c], k.zero[c], 0, 255);
}

constexpr int chunk = 64;  // channels whose accumulators lie on the stack; the loops over them are what compilers vectorize

// acc[c] = bias[c] + the sum over all taps, for n channels from `first`.
void accumulate(const DepthwiseShape& s, const DepthwiseRun& r, const Constants& k, const uint8_t* x, int first, int n, int32_t* acc) {
  for (int c = 0; c < n; ++c) acc[c] = k.bias[first + c];
  for (int u = 0; u < s.kh; ++u)
    for (int v = 0; v < s.kw; ++v) {
      const uint8_t* in = x + u * s.dh * r.x_row + v * s.dw * r.x_pixel + first;
      const int8_t* w = k.w + static_cast<int64_t>(u * s.kw + v) * s.c + first;
      for (int c = 0; c < n; ++c) acc[c] += in[c] * w[c];
    }
}

void finish(const Head& head, const Constants& k, const int32_t* acc, int first, int n, void* y) {
  float v[chunk];
  for (int c = 0; c < n; ++c) v[c] = static_cast<float>(acc[c]) * k.scale[first + c];
  uint8_t* codes = static_cast<uint8_t*>(y) + first;
  const int32_t* zero = k.zero + first;
  switch (head.e.kind) {
    case EpilogueKind::linear:
      for (int c = 0; c < n; ++c) codes[c] = to_code(v[c], zero[c], head.e.lo, head.e.hi);
      break;
    case EpilogueKind::table:
      for (int c = 0; c < n; ++c) codes[c] = head.table[to_code(v[c], zero[c], 0, 255)];
      break;
    case EpilogueKind::poly:
      for (int c = 0; c < n; ++c) codes[c] = poly_code(head, k, first + c, v[c]);
      break;
    case EpilogueKind::fine:
      for (int c = 0; c < n; ++c) codes[c] = fine_code(head.table, v[c], zero[c]);
      break;
    case EpilogueKind::real: 
      if (head.raw) std::memcpy(static_cast<float*>(y) + first, acc, static_cast<size_t>(n) * 4);
      else std::memcpy(static_cast<float*>(y) + first, v, static_cast<size_t>(n) * 4);
      break;
  }
}

void run(const DepthwiseShape& s, const DepthwiseRun& r, int row_begin, int row_end) {
  const Head& head = *static_cast<const Head*>(r.packed);
  const Constants k = constants(r.packed, s.c);
  const UnaryFn unary = kernels(Isa::portable).unary_f32;
  int32_t acc[chunk];
  for (int row = row_begin; row < row_end; ++row)
    for (int column = 0; column < r.out_w; ++column) {
      const uint8_t* x = r.x + row * s.sh * r.x_row + column * s.sw * r.x_pixel;
      uint8_t* y = static_cast<uint8_t*>(r.y) + row * r.y_row + column * r.y_pixel;
      for (int first = 0; first < s.c; first += chunk) {
        const int n = s.c - first < chunk ? s.c - first : chunk;
        accumulate(s, r, k, x, first, n, acc);
        finish(head, k, acc, first, n, y);
      }
      if (head.e.kind == EpilogueKind::real && head.e.unary != 0)
        unary(reinterpret_cast<float*>(y), reinterpret_cast<float*>(y), s.c, head.e.unary, head.e.unary_a, head.e.unary_b);
    }
}

}  // namespace

const DepthwiseKernel depthwise_u8_portable = {packed_bytes, pack, run};

}  // namespace rw
