// Runs of floats: functions of one value, of two, and softmax; compiled once per path, the same bits on each.
#pragma once
#include "float_math.h"
#include "kernels.h"

namespace rw {
namespace {

struct Add { V operator()(V a, V b) const { return a + b; } };
struct Sub { V operator()(V a, V b) const { return a - b; } };
struct Mul { V operator()(V a, V b) const { return a * b; } };
struct Div { V operator()(V a, V b) const { return a / b; } };
struct Max { V operator()(V a, V b) const { return if_nan(a, a, greatest(a, b)); } };  // NaN where either is
struct Min { V operator()(V a, V b) const { return if_nan(a, a, least(a, b)); } };
struct Pow { V operator()(V a, V b) const { return pow_of(a, b); } };

template <class Body>
RW_INLINE void with_binary(int function, const Body& body) {
  switch (function) {
    case kSub: return body(Sub{});
    case kMul: return body(Mul{});
    case kDiv: return body(Div{});
    case kMax: return body(Max{});
    case kMin: return body(Min{});
    case kPow: return body(Pow{});
    default: return body(Add{});
  }
}

void unary_run(const float* x, float* y, int64_t n, int function, float a, float b) { apply_unary(x, y, n, function, a, b); }

RW_INLINE V load_step(const float* p, int64_t i, int64_t step, int n) {
  if (step == 1) return load(p + i, n);
  if (step == 0) return set(*p);
  alignas(64) float lanes[W] = {};
  for (int k = 0; k < n; k++) lanes[k] = p[(i + k) * step];
  return load(lanes);
}

void binary_run(const float* a, int64_t a_step, const float* b, int64_t b_step, float* y, int64_t n, int function, int unary,
                float ua, float ub) {
  with_binary(function, [&](const auto& f) {
    int64_t i = 0;
    if (a_step == 1 && b_step == 1)
      for (; i + W <= n; i += W) store(y + i, f(load(a + i), load(b + i)));
    else if (a_step == 1 && b_step == 0)
      for (const V all = n > 0 ? set(*b) : set(0.0f); i + W <= n; i += W) store(y + i, f(load(a + i), all));
    for (; i < n; i += W) {
      const int left = n - i < W ? static_cast<int>(n - i) : W;
      store(y + i, f(load_step(a, i, a_step, left), load_step(b, i, b_step, left)), left);
    }
  });
  if (unary != kNone) apply_unary(y, y, n, unary, ua, ub);
}

// e[i] = exp(x[i] - max x), summed in 16 interleaved lanes (lane i % 16), then lane pairs 8, 4, 2, 1 apart; y = e / sum.
void softmax_run(const float* x, float* y, int64_t n) {
  if (n <= 0) return;
  constexpr int kLanes = 16, kParts = kLanes / W;
  alignas(64) float lanes[kLanes];
  float top = x[0];
  int64_t i = 0;
  V tops = set(x[0]);
  for (; i + W <= n; i += W) tops = if_nan(tops, tops, greatest(tops, load(x + i)));
  store(lanes, tops);
  for (int k = 0; k < W; k++) top = top > lanes[k] || top != top ? top : lanes[k];
  for (; i < n; i++) top = top > x[i] || top != top ? top : x[i];

  V sums[kParts];
  for (int k = 0; k < kParts; k++) sums[k] = set(0.0f);
  for (i = 0; i < n; i += kLanes)
    for (int k = 0; k < kParts; k++) {
      const int64_t left = n - i - k * W;
      if (left <= 0) break;
      const int count = left < W ? static_cast<int>(left) : W;
      const V e = exp_of(load(x + i + k * W, count) - set(top));
      store(y + i + k * W, e, count);
      // lanes without an element add +0, which changes no sum
      sums[k] = sums[k] + (count == W ? e : load(y + i + k * W, count));
    }
  for (int k = 0; k < kParts; k++) store(lanes + k * W, sums[k]);
  for (int apart = kLanes / 2; apart > 0; apart /= 2)
    for (int k = 0; k < apart; k++) lanes[k] = lanes[k] + lanes[k + apart];
  const V total = set(lanes[0]);
  for (i = 0; i < n; i += W) {
    const int count = n - i < W ? static_cast<int>(n - i) : W;
    store(y + i, load(y + i, count) / total, count);
  }
}

}  // namespace
}  // namespace rw
