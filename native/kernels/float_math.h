// The elementwise float functions of docs/engine.md ("float32"), in exactly the sequence written there: every operation
// rounds on its own, so all paths, and run/arithmetic.py in NumPy, give the same bits. No `fused` in this file.
#pragma once
#include "simd_f32.h"

namespace rw {
namespace {

enum : int {
  kNone, kRelu, kClip, kLeakyRelu, kSigmoid, kSilu, kHardSigmoid, kHardSwish, kTanh, kExp, kGeluTanh, kMish,
  kElu, kSoftplus, kSqrt, kAbs, kNeg, kAffine, kReciprocal, kLog, kSquare, kGeluErf, kUnaryCount
};
enum : int { kAdd, kSub, kMul, kDiv, kMax, kMin, kPow, kBinaryCount };

RW_INLINE V absolute(V x) { return floats(both(bits(x), whole(0x7fffffff))); }
RW_INLINE V negated(V x) { return floats(differ(bits(x), whole(INT32_MIN))); }

RW_INLINE V exp_of(V x) {
  x = clamped(x, -87.0f, 88.0f);
  const V k = to_nearest(x * set(1.44269504f));
  V r = x - k * set(0.693359375f);
  r = r - k * set(-2.12194440e-4f);
  V p = set(1.9875691500e-4f);
  p = p * r + set(1.3981999507e-3f);
  p = p * r + set(8.3334519073e-3f);
  p = p * r + set(4.1665795894e-2f);
  p = p * r + set(1.6666665459e-1f);
  p = p * r + set(5.0000001201e-1f);
  return times_power(p * (r * r) + r + set(1.0f), k);
}

RW_INLINE V sigmoid_of(V x) { return set(1.0f) / (set(1.0f) + exp_of(negated(x))); }
RW_INLINE V tanh_of(V x) { return set(2.0f) * sigmoid_of(set(2.0f) * x) - set(1.0f); }

RW_INLINE V horner(V, V sum) { return sum; }
template <class... Rest> RW_INLINE V horner(V x, V sum, float next, Rest... rest) { return horner(x, sum * x + set(next), rest...); }

RW_INLINE V log_of(V x) {
  x = clamped(x, 1.17549435e-38f, 3.40282347e38f);
  const Bits i = bits(x), power = down23(minus(i, whole(0x3f3504f3)));
  const V k = converted(power), m = floats(minus(i, up23(power)));  // x = m * 2^k, m in sqrt(1/2)..sqrt(2)
  const V f = m - set(1.0f), z = f * f;
  const V p = horner(f, set(-7.63120800e-2f), 1.28549218e-1f, -1.32078856e-1f, 1.41900063e-1f, -1.66165233e-1f, 2.00016156e-1f,
                     -2.50010610e-1f, 3.33333284e-1f);
  V y = (f * z) * p;
  y = y - z * set(0.5f);
  return ((f + y) + k * set(-2.12194440e-4f)) + k * set(0.693359375f);
}

// rint for any x: `to_nearest` need not hold above 2^22 on every path, and from 2^23 on all floats are whole.
RW_INLINE V rint_of(V x) {
  const V sign = floats(both(bits(x), whole(INT32_MIN)));
  const V magic = floats(differ(bits(set(8388608.0f)), bits(sign)));
  return if_less(absolute(x), set(8388608.0f), (x + magic) - magic, x);
}

RW_INLINE V pow_of(V x, V y) {
  const V zero = set(0.0f), e = exp_of(y * log_of(absolute(x)));
  const V odd = absolute(y - set(2.0f) * rint_of(y * set(0.5f)));
  const V whole_y = if_less(zero, odd, negated(e), e);
  const V negative = if_less(zero, absolute(y - rint_of(y)), set(__builtin_nanf("")), whole_y);
  return if_less(x, zero, negative, e);
}

// A functor per function, so that a loop is compiled with the function inside it.
struct None { V operator()(V x) const { return x; } };
struct Relu { V operator()(V x) const { return greatest(set(0.0f), x); } };
struct Clip { float a, b; V operator()(V x) const { return clamped(x, a, b); } };
struct LeakyRelu { float a; V operator()(V x) const { return if_less(set(0.0f), x, x, x * set(a)); } };
struct Sigmoid { V operator()(V x) const { return sigmoid_of(x); } };
struct Silu { V operator()(V x) const { return x * sigmoid_of(x); } };
struct Tanh { V operator()(V x) const { return tanh_of(x); } };
struct Exp { V operator()(V x) const { return exp_of(x); } };
struct HardSigmoid { float a, b; V operator()(V x) const { return clamped(x * set(a) + set(b), 0.0f, 1.0f); } };
struct HardSwish { V operator()(V x) const { return x * clamped(x * set(0.16666667f) + set(0.5f), 0.0f, 1.0f); } };
struct Sqrt { V operator()(V x) const { return root(x); } };
struct Abs { V operator()(V x) const { return absolute(x); } };
struct Neg { V operator()(V x) const { return negated(x); } };
struct Affine { float a, b; V operator()(V x) const { return x * set(a) + set(b); } };
struct Reciprocal { V operator()(V x) const { return set(1.0f) / x; } };
struct Square { V operator()(V x) const { return x * x; } };
struct Log { V operator()(V x) const { return log_of(x); } };
struct GeluTanh {
  V operator()(V x) const { return x * sigmoid_of(x * (x * x * set(0.071354814f) + set(1.5957691f))); }
};
struct GeluErf {
  V operator()(V x) const {
    const V t = clamped(x, -6.0f, 6.0f);
    const V g = horner(t * t, set(3.61115049e-9f), -2.66889685e-7f, 7.93817708e-6f, -1.10480069e-4f, -6.62606326e-5f,
                       7.26685673e-2f, 1.59576845f);
    return x * sigmoid_of(t * g);
  }
};
struct Mish {
  V operator()(V x) const {
    const V e = exp_of(least(set(20.0f), x)), n = e * (e + set(2.0f));
    return x * (n / (n + set(2.0f)));
  }
};
struct Elu {
  float a;
  V operator()(V x) const { return greatest(set(0.0f), x) + (exp_of(least(set(0.0f), x)) - set(1.0f)) * set(a); }
};
struct Softplus {
  V operator()(V x) const { return greatest(set(0.0f), x) + log_of(set(1.0f) + exp_of(negated(absolute(x)))); }
};

// Calls body(functor) with the functor of `function`; a plan with another number was refused when it was loaded.
template <class Body>
RW_INLINE void with_unary(int function, float a, float b, const Body& body) {
  switch (function) {
    case kRelu: return body(Relu{});
    case kClip: return body(Clip{a, b});
    case kLeakyRelu: return body(LeakyRelu{a});
    case kSigmoid: return body(Sigmoid{});
    case kSilu: return body(Silu{});
    case kHardSigmoid: return body(HardSigmoid{a, b});
    case kHardSwish: return body(HardSwish{});
    case kTanh: return body(Tanh{});
    case kExp: return body(Exp{});
    case kSqrt: return body(Sqrt{});
    case kAbs: return body(Abs{});
    case kNeg: return body(Neg{});
    case kAffine: return body(Affine{a, b});
    case kReciprocal: return body(Reciprocal{});
    case kSquare: return body(Square{});
    case kLog: return body(Log{});
    case kGeluTanh: return body(GeluTanh{});
    case kGeluErf: return body(GeluErf{});
    case kMish: return body(Mish{});
    case kElu: return body(Elu{a});
    case kSoftplus: return body(Softplus{});
    default: return body(None{});
  }
}

// y = f(x) for n contiguous floats; y may be x. One copy per file, not inlined: it is called per tile or row.
__attribute__((noinline, unused)) void apply_unary(const float* x, float* y, int64_t n, int function, float a, float b) {
  with_unary(function, a, b, [&](const auto& f) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(y + i, f(load(x + i)));
    if (i < n) store(y + i, f(load(x + i, static_cast<int>(n - i))), static_cast<int>(n - i));
  });
}

// What a convolution keeps behind its packed weights to finish an output. Functions that only clamp are done in registers.
struct Finish {
  int function;
  float a, b;
  int clamps;    // 1: the function is min(max(x, lo), hi)
  float lo, hi;
  int pad[2];
};

RW_INLINE Finish finish_of(int function, float a, float b) {
  const float infinity = __builtin_inff();
  Finish f = {function, a, b, function == kNone || function == kRelu || function == kClip, -infinity, infinity, {0, 0}};
  if (function == kRelu) f.lo = 0.0f;
  if (function == kClip) { f.lo = a; f.hi = b; }
  return f;
}

}  // namespace
}  // namespace rw
