// maxpool_u8, avgpool_u8: positions outside the image are left out.
#include "kernels.h"
#include "scalar.h"

namespace rw {
namespace {

struct Range {
  int begin, end;
};

// The positions of a window of k at `first` that lie inside 0..size.
Range inside(int first, int k, int size) {
  const int begin = first < 0 ? 0 : first, end = first + k > size ? size : first + k;
  return {begin, end < begin ? begin : end};
}

void maxpool(const Image& x, const Image& y, const PoolParams& p, int begin, int end) {
  for (int r = begin; r < end; ++r) {
    const Range rows = inside(r * p.sh - p.pad_top, p.kh, x.h);
    for (int i = 0; i < y.w; ++i) {
      const Range columns = inside(i * p.sw - p.pad_left, p.kw, x.w);
      uint8_t* out = byte_at(y, r, i);
      for (int c = 0; c < y.c; ++c) out[c] = 0;
      for (int u = rows.begin; u < rows.end; ++u)
        for (int v = columns.begin; v < columns.end; ++v) {
          const uint8_t* in = byte_at(x, u, v);
          for (int c = 0; c < y.c; ++c) out[c] = in[c] > out[c] ? in[c] : out[c];
        }
    }
  }
}

void avgpool(const Image& x, const Image& y, const PoolParams& p, int begin, int end) {
  for (int r = begin; r < end; ++r) {
    const Range rows = inside(r * p.sh - p.pad_top, p.kh, x.h);
    for (int i = 0; i < y.w; ++i) {
      const Range columns = inside(i * p.sw - p.pad_left, p.kw, x.w);
      const int n = (rows.end - rows.begin) * (columns.end - columns.begin);
      const float m = p.m[p.count_padding ? p.kh * p.kw : n];
      uint8_t* out = byte_at(y, r, i);
      for (int c = 0; c < y.c; ++c) {
        int32_t sum = -n * p.zx;
        for (int u = rows.begin; u < rows.end; ++u)
          for (int v = columns.begin; v < columns.end; ++v) sum += byte_at(x, u, v)[c];
        out[c] = to_code(static_cast<float>(sum) * m, p.zy, 0, 255);
      }
    }
  }
}

}  // namespace

const PoolFn maxpool_u8_portable = maxpool;
const PoolFn avgpool_u8_portable = avgpool;

}  // namespace rw
