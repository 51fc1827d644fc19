// What the files of the detection kernels share; in an anonymous namespace, as each is compiled for its own instruction set.
//
// IoU is decided in float64 (detect/boxes.py). The fast paths decide in float32 and ask `exact_bits` only where float32 cannot
// tell. I / (A + B - I) > t is I > (A + B) * t / (1 + t). With u = 2^-24 a side is off by u, so I and each area by 3u; the
// factor and its product add 2u, the sum u: the two sides of the comparison are off by at most 9u. BoxArrays.bound is lowered
// by 64u: below the sum of two bounds the answer is no for certain, and above that sum raised by 128u it is yes.
#pragma once
#include "kernels.h"

namespace rw {
namespace {

constexpr float kCertain = 1.0f + 1.0f / (1 << 17);

inline double larger(double a, double b) { return a > b ? a : b; }
inline double smaller(double a, double b) { return a < b ? a : b; }

inline bool exact_above(const BoxArrays& s, int64_t i, int64_t j, double threshold) {
  double ax1 = s.x1[i], ay1 = s.y1[i], ax2 = s.x2[i], ay2 = s.y2[i], bx1 = s.x1[j], by1 = s.y1[j], bx2 = s.x2[j], by2 = s.y2[j];
  double shared = larger(smaller(ax2, bx2) - larger(ax1, bx1), 0) * larger(smaller(ay2, by2) - larger(ay1, by1), 0);
  double a = larger(ax2 - ax1, 0) * larger(ay2 - ay1, 0), b = larger(bx2 - bx1, 0) * larger(by2 - by1, 0);
  double both = larger(a + b - shared, 2.2250738585072014e-308);
  return shared / both > threshold;
}

// The bits of `ask` whose box is above the threshold, in float64. Rarely called, and kept out of the loops: inlined, it makes
// the compiler hold the box in scalar registers and broadcast them instead of broadcasting from memory.
__attribute__((noinline, unused)) unsigned exact_bits(const BoxArrays& s, int64_t box, int64_t group, unsigned ask, double threshold) {
  unsigned above = 0;
  for (; ask; ask &= ask - 1) {
    int lane = __builtin_ctz(ask);
    if (exact_above(s, box, group * 16 + lane, threshold)) above |= 1u << lane;
  }
  return above;
}

}  // namespace
}  // namespace rw
