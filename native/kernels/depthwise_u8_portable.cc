// Depthwise convolution on codes, one accumulator at a time: acc[c] = sum x * w + bias, then the epilogue.
#include <cstring>

#include "kernels.h"
#include "scalar.h"

namespace rw {
namespace {

// What pack() writes: this head, then bias, scale, zero, out scale (4 bytes each, c entries) and the weights [kh*kw][c].
struct Head {
  Epilogue e;  // scalars only; its pointers are not used
  uint8_t table[256];
  float poly[96];
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
  if (w.e.kind == EpilogueKind::table) std::memcpy(head.table, w.e.table, sizeof head.table);
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
  float t = v * head.e.poly_a + head.e.poly_b;
  t = t > 0.0f ? t : 0.0f;
  t = t < 31.0f ? t : 31.0f;
  const int i = static_cast<int>(t);
  const float f = (head.poly[64 + i] * v + head.poly[32 + i]) * v + head.poly[i];
  return to_code(f * k.out_scale[c], k.zero[c], 0, 255);
}

void finish(const Head& head, const Constants& k, int c, int32_t acc, void* y) {
  const float v = static_cast<float>(acc) * k.scale[c];
  switch (head.e.kind) {
    case EpilogueKind::linear: static_cast<uint8_t*>(y)[c] = to_code(v, k.zero[c], head.e.lo, head.e.hi); break;
    case EpilogueKind::table: static_cast<uint8_t*>(y)[c] = head.table[to_code(v, k.zero[c], 0, 255)]; break;
    case EpilogueKind::poly: static_cast<uint8_t*>(y)[c] = poly_code(head, k, c, v); break;
    case EpilogueKind::real: static_cast<float*>(y)[c] = v; break;
  }
}

void run(const DepthwiseShape& s, const DepthwiseRun& r, int row_begin, int row_end) {
  const Head& head = *static_cast<const Head*>(r.packed);
  const Constants k = constants(r.packed, s.c);
  const UnaryFn unary = kernels(Isa::portable).unary_f32;
  for (int row = row_begin; row < row_end; ++row)
    for (int column = 0; column < r.out_w; ++column) {
      const uint8_t* x = r.x + row * s.sh * r.x_row + column * s.sw * r.x_pixel;
      uint8_t* y = static_cast<uint8_t*>(r.y) + row * r.y_row + column * r.y_pixel;
      for (int c = 0; c < s.c; ++c) {
        int32_t acc = k.bias[c];
        for (int u = 0; u < s.kh; ++u)
          for (int v = 0; v < s.kw; ++v)
            acc += x[u * s.dh * r.x_row + v * s.dw * r.x_pixel + c] * k.w[static_cast<int64_t>(u * s.kw + v) * s.c + c];
        finish(head, k, c, acc, y);
      }
      if (head.e.kind == EpilogueKind::real && head.e.unary != 0)
        unary(reinterpret_cast<float*>(y), reinterpret_cast<float*>(y), s.c, head.e.unary, head.e.unary_a, head.e.unary_b);
    }
}

}  // namespace

const DepthwiseKernel depthwise_u8_portable = {packed_bytes, pack, run};

}  // namespace rw
