// nearest (any element size) and linear_u8.
#include <cstring>

#include "kernels.h"
#include "scalar.h"

namespace rw {
namespace {

void nearest_rows(const Image& x, const Image& y, int element_bytes, const int32_t* row, const int32_t* column, int begin, int end) {
  const size_t bytes = static_cast<size_t>(y.c) * element_bytes;
  for (int r = begin; r < end; ++r)
    for (int i = 0; i < y.w; ++i) std::memcpy(byte_at(y, r, i), byte_at(x, row[r], column[i]), bytes);
}

void linear(const Image& x, const Image& y, const LinearParams& p, int begin, int end) {
  for (int r = begin; r < end; ++r)
    for (int i = 0; i < y.w; ++i) {
      const uint8_t *p00 = byte_at(x, p.row0[r], p.column0[i]), *p01 = byte_at(x, p.row0[r], p.column1[i]);
      const uint8_t *p10 = byte_at(x, p.row1[r], p.column0[i]), *p11 = byte_at(x, p.row1[r], p.column1[i]);
      const float wx = p.wx[i], wy = p.wy[r], vx = 1.0f - wx, vy = 1.0f - wy;
      uint8_t* out = byte_at(y, r, i);
      for (int c = 0; c < y.c; ++c) {
        const float top = p00[c] * vx + p01[c] * wx, bottom = p10[c] * vx + p11[c] * wx;
        out[c] = to_code(top * vy + bottom * wy, 0, 0, 255);
      }
    }
}

}  // namespace

const NearestFn nearest_portable = nearest_rows;
const LinearFn linear_u8_portable = linear;

}  // namespace rw
