// The elementwise float functions of docs/engine.md ("float32"), in exactly the sequence written there: every operation
// rounds on its own, so all paths, and run/arithmetic in NumPy, give the same bits. No `fused` in this file.
// They are templates over T, a vector (V) or four of them (Four).
#pragma once
#include "four_f32.h"

namespace rw {
namespace {

enum : int {
  kNone, kRelu, kClip, kLeakyRelu, kSigmoid, kSilu, kHardSigmoid, kHardSwish, kTanh, kExp, kGeluTanh, kMish,
  kElu, kSoftplus, kSqrt, kAbs, kNeg, kAffine, kReciprocal, kLog, kSquare, kGeluErf
};
enum : int { kAdd, kSub, kMul, kDiv, kMax, kMin, kPow };

template <class T> RW_INLINE T absolute(T x) { return floats(both(bits(x), whole(0x7fffffff))); }
template <class T> RW_INLINE T negated(T x) { return floats(differ(bits(x), whole(INT32_MIN))); }

template <class T> RW_INLINE T horner(T, T sum) { return sum; }
template <class T, class... Rest> RW_INLINE T horner(T x, T sum, float next, Rest... rest) {
  const T more = sum * x + set(next);
  return horner(x, more, rest...);
}

// exp(x), or exp(-x) with Sign = -1: every rounding is symmetric, so -r may stand in the place of r, each sign being turned where
// it matters. That gives the same bits and takes no instruction to negate x.
// rint: adding 1.5 * 2^23 rounds half to even (|x| < 2^22) and leaves k in the lowest bits, from where it is added to the exponent:
// an exact scaling, because the result is a normal number for all of -87..88.
// In three parts, because the float convolutions work them out at different times.
template <int Sign, class T> RW_INLINE T next_step(T a, float c) {  // the next step of the polynomial: c + a or, where a has -r in it, c - a
  if constexpr (Sign > 0) return a + set(c);
  else return set(c) - a;
}
template <int Sign, class T> RW_INLINE void exp_begin(T x, T& shifted, T& r) {
  const V magic = set(12582912.0f);
  x = Sign > 0 ? clamped(x, -87.0f, 88.0f) : clamped(x, -88.0f, 87.0f);
  shifted = x * set(Sign * 1.44269504f) + magic;
  const T k = shifted - magic;
  r = x - k * set(Sign * 0.693359375f);
  r = r - k * set(Sign * -2.12194440e-4f);
}
template <int Sign, class T> RW_INLINE T exp_middle(T r) {
  T p = next_step<Sign>(set(8.289708e-3f) * r, 4.189783e-2f);
  p = next_step<Sign>(p * r, 1.6667648e-1f);
  p = next_step<Sign>(p * r, 4.999915e-1f);
  p = next_step<Sign>(p * r, 9.999997e-1f);
  return next_step<Sign>(p * r, 1.0f);
}
template <class T> RW_INLINE T exp_end(T e, T shifted) { return floats(plus(bits(e), up23(bits(shifted)))); }

template <int Sign = 1, class T> RW_INLINE T exp_of(T x) {
  T shifted, r;
  exp_begin<Sign>(x, shifted, r);
  return exp_end(exp_middle<Sign>(r), shifted);
}

template <class T> RW_INLINE T sigmoid_of(T x) { return set(1.0f) / (set(1.0f) + exp_of<-1>(x)); }
template <class T> RW_INLINE T silu_of(T x) { return x / (set(1.0f) + exp_of<-1>(x)); }

template <class T> RW_INLINE T log_of(T x) {
  x = clamped(x, 1.17549435e-38f, 3.40282347e38f);
  const auto i = bits(x), power = down23(minus(i, whole(0x3f3504f3)));
  const T k = converted(power), m = floats(minus(i, up23(power)));  // x = m * 2^k, m in sqrt(1/2)..sqrt(2)
  const T f = m - set(1.0f), z = f * f;
  T p = set(-7.63120800e-2f) * f + set(1.28549218e-1f);
  p = horner(f, p, -1.32078856e-1f, 1.41900063e-1f, -1.66165233e-1f, 2.00016156e-1f, -2.50010610e-1f, 3.33333284e-1f);
  T y = (f * z) * p;
  y = y - z * set(0.5f);
  return ((f + y) + k * set(-2.12194440e-4f)) + k * set(0.693359375f);
}

// rint for any x: from 2^23 on all floats are whole, below it adding and taking off 2^23 leaves no bits behind the point.
RW_INLINE V rint_of(V x) {
  const Bits sign = both(bits(x), whole(INT32_MIN));
  const V magic = floats(differ(bits(set(8388608.0f)), sign));
  return if_less(absolute(x), set(8388608.0f), (x + magic) - magic, x);
}

// For x < 0 the comparisons are made so that an infinite y counts as whole and odd, as it does in NumPy.
RW_INLINE V pow_of(V x, V y) {
  const V e = exp_of(y * log_of(absolute(x))), nan = set(__builtin_nanf("")), nearest = rint_of(y);
  const V odd = absolute(y - set(2.0f) * rint_of(y * set(0.5f)));  // 0, 1, or NaN
  const V whole_y = if_less(odd, set(0.5f), e, negated(e));
  return if_less(x, set(0.0f), if_less(y, nearest, nan, if_less(nearest, y, nan, whole_y)), e);
}

// A functor per function, so that a loop is compiled with the function inside it.
#define RW_FUNCTION template <class T> RW_MEMBER T operator()(T x) const
#define RW_MEMBER inline __attribute__((always_inline))
struct None { RW_FUNCTION { return x; } };
struct Relu { RW_FUNCTION { return greatest(set(0.0f), x); } };
struct Clip { float a, b; RW_FUNCTION { return clamped(x, a, b); } };
struct LeakyRelu { float a; RW_FUNCTION { return if_less(set(0.0f), x, x, x * set(a)); } };
struct Sigmoid { RW_FUNCTION { return sigmoid_of(x); } };
struct Silu { RW_FUNCTION { return silu_of(x); } };
struct HardSigmoid { float a, b; RW_FUNCTION { return clamped(x * set(a) + set(b), 0.0f, 1.0f); } };
struct HardSwish { RW_FUNCTION { return x * clamped(x * set(0.16666667f) + set(0.5f), 0.0f, 1.0f); } };
struct Tanh { RW_FUNCTION { return set(2.0f) * sigmoid_of(set(2.0f) * x) - set(1.0f); } };
struct Exp { RW_FUNCTION { return exp_of(x); } };
struct GeluTanh { RW_FUNCTION { return x * sigmoid_of(x * (x * x * set(0.071354814f) + set(1.5957691f))); } };
struct Mish {
  RW_FUNCTION {
    const T e = exp_of(least(set(20.0f), x)), n = e * (e + set(2.0f));
    return x * (n / (n + set(2.0f)));
  }
};
struct Elu {
  float a;
  RW_FUNCTION { return greatest(set(0.0f), x) + (exp_of(least(set(0.0f), x)) - set(1.0f)) * set(a); }
};
struct Softplus { RW_FUNCTION { return greatest(set(0.0f), x) + log_of(set(1.0f) + exp_of<-1>(absolute(x))); } };
struct Sqrt { RW_FUNCTION { return root(x); } };
struct Abs { RW_FUNCTION { return absolute(x); } };
struct Neg { RW_FUNCTION { return negated(x); } };
struct Affine { float a, b; RW_FUNCTION { return x * set(a) + set(b); } };
struct Reciprocal { RW_FUNCTION { return set(1.0f) / x; } };
struct Log { RW_FUNCTION { return log_of(x); } };
struct Square { RW_FUNCTION { return x * x; } };
struct GeluErf {
  RW_FUNCTION {
    const T t = clamped(x, -6.0f, 6.0f), u = t * t;
    const T g = horner(u, set(3.61115049e-9f) * u + set(-2.66889685e-7f), 7.93817708e-6f, -1.10480069e-4f, -6.62606326e-5f,
                       7.26685673e-2f, 1.59576845f);
    return x * sigmoid_of(t * g);
  }
};

// SiLU as a pipeline: `next(x)` takes a value and gives the SiLU of the value taken two calls before, doing a third of the chain
// for three successive values. Beside other work this leaves fewer instructions waiting than the whole chain at once.
struct SiluPipe {
  static constexpr int kLag = 2;
  V x1, shifted1, r1, x2, shifted2, e2;
  RW_MEMBER void clear() { x1 = shifted1 = r1 = x2 = shifted2 = e2 = set(0.0f); }
  RW_MEMBER V next(V x) {
    const V result = x2 / (set(1.0f) + exp_end(e2, shifted2));
    e2 = exp_middle<-1>(r1), x2 = x1, shifted2 = shifted1;
    exp_begin<-1>(x, shifted1, r1);
    x1 = x;
    return result;
  }
};
struct NoPipe {
  static constexpr int kLag = 0;
  RW_MEMBER void clear() {}
  RW_MEMBER V next(V x) { return x; }
};

#undef RW_FUNCTION
#undef RW_MEMBER

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
    case kGeluTanh: return body(GeluTanh{});
    case kMish: return body(Mish{});
    case kElu: return body(Elu{a});
    case kSoftplus: return body(Softplus{});
    case kSqrt: return body(Sqrt{});
    case kAbs: return body(Abs{});
    case kNeg: return body(Neg{});
    case kAffine: return body(Affine{a, b});
    case kReciprocal: return body(Reciprocal{});
    case kLog: return body(Log{});
    case kSquare: return body(Square{});
    case kGeluErf: return body(GeluErf{});
    default: return body(None{});
  }
}

// y = f(x) for n contiguous floats; y may be x. One copy per file, not inlined: it is called per tile or row.
__attribute__((noinline, unused)) void apply_unary(const float* x, float* y, int64_t n, int function, float a, float b) {
  with_unary(function, a, b, [&](const auto& f) {
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
      const Four r = f(Four{{load(x + i), load(x + i + W), load(x + i + 2 * W), load(x + i + 3 * W)}});
      store(y + i, r.v[0]), store(y + i + W, r.v[1]), store(y + i + 2 * W, r.v[2]), store(y + i + 3 * W, r.v[3]);
    }
    for (; i + W <= n; i += W) store(y + i, f(load(x + i)));
    if (i < n) store(y + i, f(load(x + i, static_cast<int>(n - i))), static_cast<int>(n - i));
  });
}

// What a convolution keeps behind its packed weights to finish an output. Functions that only clamp are done in registers.
struct Finish {
  int function;
  float a, b;
  int clamps;  // 1: the function is min(max(x, lo), hi)
  float lo, hi;
};

RW_INLINE Finish finish_of(int function, float a, float b) {
  const float infinity = __builtin_inff();
  Finish f = {function, a, b, function == kNone || function == kRelu || function == kClip, -infinity, infinity};
  if (function == kRelu) f.lo = 0.0f;
  if (function == kClip) { f.lo = a; f.hi = b; }
  return f;
}

}  // namespace
}  // namespace rw
