// What the vector versions of depthwise_u8 share: the constants of all channels, and the function behind a float result.
#pragma once
#include <cstring>

#include "kernels.h"

namespace rw {
namespace {

// At the front of the packed constants.
struct alignas(64) Head {
  uint8_t table[kFineEntries];
  float poly[96];
  float poly_b;
  int lo, hi;
  EpilogueKind kind;
  int unary;
  float unary_a, unary_b;
  bool raw;  // real: accumulators as they are
};

void fill_head(const Epilogue& e, void* packed) {
  Head& h = *static_cast<Head*>(packed);
  std::memset(packed, 0, sizeof h);
  if (e.kind == EpilogueKind::table) std::memcpy(h.table, e.table, 256);
  if (e.kind == EpilogueKind::fine) std::memcpy(h.table, e.table, kFineEntries);
  if (e.kind == EpilogueKind::poly) std::memcpy(h.poly, e.poly, sizeof h.poly);
  h.poly_b = e.poly_b;
  h.lo = e.lo, h.hi = e.hi;
  h.kind = e.kind;
  h.raw = e.scale == nullptr;
  h.unary = e.unary, h.unary_a = e.unary_a, h.unary_b = e.unary_b;
}

// Over the results of rows [begin, end), in place.
void apply_unary(UnaryFn unary, const DepthwiseShape& s, const DepthwiseRun& r, int begin, int end) {
  const Head& h = *static_cast<const Head*>(r.packed);
  if (h.kind != EpilogueKind::real || h.unary == 0) return;
  const bool dense = r.y_pixel == static_cast<int64_t>(s.c) * 4;
  for (int i = begin; i < end; ++i)
    for (int column = 0; column < (dense ? 1 : r.out_w); ++column) {
      float* y = reinterpret_cast<float*>(static_cast<uint8_t*>(r.y) + i * r.y_row + column * r.y_pixel);
      unary(y, y, dense ? static_cast<int64_t>(r.out_w) * s.c : s.c, h.unary, h.unary_a, h.unary_b);
    }
}

}  // namespace
}  // namespace rw
