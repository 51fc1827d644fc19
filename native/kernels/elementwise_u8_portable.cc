// add_u8, mul_u8, table_u8: the formulas of docs/engine.md, one code at a time.
#include "kernels.h"
#include "scalar.h"

namespace rw {
namespace {

void add(const Image& a, const Image& b, const Image& y, const AddParams& p, int begin, int end) {
  for (int r = begin; r < end; ++r)
    for (int x = 0; x < y.w; ++x) {
      const uint8_t *pa = byte_at(a, r, x), *pb = byte_at(b, r, x);
      uint8_t* py = byte_at(y, r, x);
      for (int c = 0; c < y.c; ++c) {
        const float left = static_cast<float>(pa[c] - p.za) * p.ma[c];
        const float right = static_cast<float>(pb[c] - p.zb) * p.mb[c];
        py[c] = to_code(left + right, p.zero[c], p.lo, p.hi);
      }
    }
}

void mul(const Image& a, const Image& b, const Image& y, const MulParams& p, int begin, int end) {
  for (int r = begin; r < end; ++r)
    for (int x = 0; x < y.w; ++x) {
      const uint8_t *pa = byte_at(a, r, x), *pb = byte_at(b, r, x);
      uint8_t* py = byte_at(y, r, x);
      for (int c = 0; c < y.c; ++c)
        py[c] = to_code(static_cast<float>((pa[c] - p.za) * (pb[c] - p.zb)) * p.m, p.zy, p.lo, p.hi);
    }
}

void table(const Image& x, const Image& y, const uint8_t* codes, int begin, int end) {
  for (int r = begin; r < end; ++r)
    for (int i = 0; i < y.w; ++i) {
      const uint8_t* px = byte_at(x, r, i);
      uint8_t* py = byte_at(y, r, i);
      for (int c = 0; c < y.c; ++c) py[c] = codes[px[c]];
    }
}

}  // namespace

const AddFn add_u8_portable = add;
const MulFn mul_u8_portable = mul;
const TableFn table_u8_portable = table;

}  // namespace rw
