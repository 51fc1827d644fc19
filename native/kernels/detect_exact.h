// What the files of the detection kernels share; in an anonymous namespace, as each is compiled for its own instruction set.
//
// IoU is decided in float64 (detect/boxes.py). The fast paths decide in float32 and ask `exact_above` only where float32 cannot
// tell. With u = 2^-24: a side is off by u, so intersection I and areas by 3u; the union U = (A + B) - I by 4u(A + B) + 3u I + u U,
// which is at most 12u U, since A + B = U + I and I <= U. Threshold and product add 2u, so `I > t U` can only be wrong where
// I / U is within 17u of t. The band below is 64u.
#pragma once
#include "kernels.h"

namespace rw {
namespace {

// Below it a product may have lost bits to underflow, above it a sum may have overflowed: then float32 decides nothing.
constexpr float kSmallest = 1e-30f, kLargest = 1e37f;

struct Band {
  float low, high;  // I < low * U: below for certain; I > high * U: above for certain
};

inline Band band(double threshold) {
  const double width = 1.0 / (1 << 18);
  if (threshold == 0) return {0.0f, 0.0f};                       // any overlap is above
  if (threshold < 1e-6) return {0.0f, 3.4e38f};                  // products would underflow: always ask
  return {static_cast<float>(threshold * (1 - width)), static_cast<float>(threshold * (1 + width))};
}

inline double larger(double a, double b) { return a > b ? a : b; }
inline double smaller(double a, double b) { return a < b ? a : b; }

inline bool exact_above(const BoxArrays& s, int64_t i, int64_t j, double threshold) {
  double ax1 = s.x1[i], ay1 = s.y1[i], ax2 = s.x2[i], ay2 = s.y2[i], bx1 = s.x1[j], by1 = s.y1[j], bx2 = s.x2[j], by2 = s.y2[j];
  double shared = larger(smaller(ax2, bx2) - larger(ax1, bx1), 0) * larger(smaller(ay2, by2) - larger(ay1, by1), 0);
  double a = larger(ax2 - ax1, 0) * larger(ay2 - ay1, 0), b = larger(bx2 - bx1, 0) * larger(by2 - by1, 0);
  double both = larger(a + b - shared, 2.2250738585072014e-308);
  return shared / both > threshold;
}

// The bits of `ask` whose box is above the threshold, in float64.
inline unsigned exact_bits(const BoxArrays& s, int64_t box, int64_t group, unsigned ask, double threshold) {
  unsigned above = 0;
  for (; ask; ask &= ask - 1) {
    int lane = __builtin_ctz(ask);
    if (exact_above(s, box, group * 16 + lane, threshold)) above |= 1u << lane;
  }
  return above;
}

}  // namespace
}  // namespace rw
