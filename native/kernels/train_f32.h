// The epilogue of a layer in training: forward as the engine computes it, backward with a stand-in for the slope of rint.
//
// What is differentiated is not the table or the pieces, but the formula that they stand for (run/torch/finish.py):
//
//   linear      v = acc m                     c = rint(v)
//   fine, poly  y = f(acc s_acc), v = y / s_out         c = rint(v)
//   table       u = acc m, i = rint(u), y = f(i s_before), v = y / s_out         c = rint(v)
//   real        y = f(acc s_acc)
//
// each rint clamped, with the slope `slope_of` of v where v lies inside the clamp, and 0 outside. Per channel, with d = grad slope(v) and
// h = d f' / s_out, the sums are
//
//   linear      sum d acc
//   fine, poly  sum h acc, sum d y
//   table       sum h s_before slope(u) acc, sum d y, sum h i
//   real        sum grad f' acc
//
// from which run/torch/fused.py makes the gradients of the scales. Every operation rounds on its own, and sums are made in
// 16 lanes whatever the vectors' width: all paths give the same bits.
#pragma once
#include "float_math.h"
#include "kernels.h"

namespace rw {
namespace {

constexpr int kSumLanes = 16, kSumParts = kSumLanes / W, kSums = 3;
constexpr int64_t kSumBlock = 4096, kSumRows = 256;  // what is summed in float32, before it is added to a double
constexpr float kEdge = 1.0f / 1024;  // EDGE of surrogates.py
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23

#if defined(__AVX512F__)
RW_INLINE V entries(const float* table, Bits at) { return _mm512_i32gather_ps(at, table, 4); }
RW_INLINE V piece(const float* of32, Bits at) { return _mm512_permutex2var_ps(load(of32), at, load(of32 + 16)); }
#elif defined(__AVX2__)
RW_INLINE V entries(const float* table, Bits at) { return _mm256_i32gather_ps(table, at, 4); }
#else
RW_INLINE V entries(const float* table, Bits at) { return V{table[at[0]], table[at[1]], table[at[2]], table[at[3]]}; }
#endif
#if !defined(__AVX512F__)
RW_INLINE V piece(const float* of32, Bits at) { return entries(of32, at); }
#endif

RW_INLINE V nearest_whole(V x) { return (x + set(kMagic)) - set(kMagic); }  // half to even; |x| < 2^22
RW_INLINE Bits index_of(V whole_number) { return minus(bits(whole_number + set(kMagic)), whole(0x4b400000)); }
RW_INLINE V below(V x) {  // floor; |x| < 2^22
  const V r = nearest_whole(x);
  return if_less(x, r, r - set(1.0f), r);
}
// Within lo..hi, and lo for NaN: for indices.
RW_INLINE V placed(V x, float lo, float hi) { return if_less(set(lo), x, least(set(hi), x), set(lo)); }
RW_INLINE V codes_of(V v) { return nearest_whole(clamped(v, -32768.0f, 32767.0f)); }  // beyond, all saturates anyway
RW_INLINE V within(V x, V lo, V hi) { return least(hi, greatest(lo, x)); }
// `yes` where x lies between lo and hi, ends included, and by `edge` beyond them.
RW_INLINE V if_within(V x, V lo, V hi, V yes, float edge = 0.0f) {
  lo = lo - set(edge), hi = hi + set(edge);
  return if_less(x, lo, set(0.0f), if_less(hi, x, set(0.0f), yes)); }

// The constants of one channel in all lanes, or of W channels.
struct Line { V m, lo, hi, zero, out_scale, s_acc, s_out, per_out, s_before; };

RW_INLINE Line line_of(const TrainEpilogue& e, int64_t c, int n) {
  const auto take = [&](const float* p) { return p == nullptr ? set(0.0f) : n == 0 ? set(p[c]) : load(p + c, n); };
  Line k{take(e.m), take(e.lo), take(e.hi), take(e.zero), take(e.out_scale), take(e.s_acc), take(e.s_out), set(0.0f), take(e.s_before)};
  k.per_out = set(1.0f) / k.s_out;
  return k;
}

// Forward.

RW_INLINE V coded(const TrainEpilogue& e, const Line& k, V acc) {
  const V v = acc * k.m;
  switch (e.kind) {
    case EpilogueKind::linear: return within(codes_of(v), k.lo, k.hi);
    case EpilogueKind::poly: {
      const Bits i = index_of(below(placed(v + set(e.poly_b), 0.0f, 31.0f)));
      const V y = (piece(e.poly + 64, i) * v + piece(e.poly + 32, i)) * v + piece(e.poly, i);
      return within(codes_of(y * k.out_scale), k.lo, k.hi);
    }
    case EpilogueKind::real: return v;
    default: {
      const V at = placed(codes_of(v) + k.zero, 0.0f, static_cast<float>(e.entries - 1));
      return if_nan(v, v, entries(e.table, index_of(at)));
    }
  }
}

void train_forward(const TrainEpilogue& e, const float* acc, float* y, int64_t outer, int64_t channels, int64_t inner) {
  const auto strip = [&](const Line& k, const float* from, float* to, int64_t n) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(to + i, coded(e, k, load(from + i)));
    if (i < n) store(to + i, coded(e, k, load(from + i, static_cast<int>(n - i))), static_cast<int>(n - i));
  };
  for (int64_t o = 0; o < outer; o++) {
    const int64_t row = o * channels * inner;
    if (inner == 1)
      for (int64_t c = 0; c < channels; c += W) {
        const int n = channels - c < W ? static_cast<int>(channels - c) : W;
        strip(line_of(e, c, n), acc + row + c, y + row + c, n);
      }
    else
      for (int64_t c = 0; c < channels; c++) strip(line_of(e, c, 0), acc + row + c * inner, y + row + c * inner, inner);
  }
  if (e.kind == EpilogueKind::real && e.unary != kNone) apply_unary(y, y, outer * channels * inner, e.unary, e.a, e.b);
}

// Functions with their slopes: f(x) into y, f'(x) into d.

#define RW_SLOPED RW_MEMBER void operator()(V x, V& y, V& d) const
#define RW_MEMBER inline __attribute__((always_inline))
RW_INLINE V one() { return set(1.0f); }
RW_INLINE V nought() { return set(0.0f); }

struct NoneD { RW_SLOPED { y = x, d = one(); } };
struct ReluD { RW_SLOPED { y = greatest(nought(), x), d = if_less(nought(), x, one(), nought()); } };
struct ClipD { float a, b; RW_SLOPED { y = clamped(x, a, b), d = if_within(x, set(a), set(b), one()); } };
struct LeakyReluD { float a; RW_SLOPED { y = if_less(nought(), x, x, x * set(a)), d = if_less(nought(), x, one(), set(a)); } };
struct SigmoidD { RW_SLOPED { y = sigmoid_of(x), d = y * (one() - y); } };
struct SiluD { RW_SLOPED { const V s = sigmoid_of(x); y = x * s, d = s * (one() + x * (one() - s)); } };
struct HardSigmoidD {
  float a, b;
  RW_SLOPED { const V u = x * set(a) + set(b); y = clamped(u, 0.0f, 1.0f), d = if_within(u, nought(), one(), set(a)); }
};
struct HardSwishD {
  RW_SLOPED {
    y = x * clamped(x * set(0.16666667f) + set(0.5f), 0.0f, 1.0f);
    d = if_less(x, set(-3.0f), nought(), if_less(set(3.0f), x, one(), x * set(0.33333334f) + set(0.5f)));
  }
};
struct TanhD { RW_SLOPED { y = set(2.0f) * sigmoid_of(set(2.0f) * x) - one(), d = one() - y * y; } };
struct ExpD { RW_SLOPED { y = d = exp_of(x); } };
struct GeluTanhD {
  RW_SLOPED {
    const V t = x * x, s = sigmoid_of(x * (t * set(0.071354814f) + set(1.5957691f)));
    y = x * s, d = s + y * (one() - s) * (t * set(3 * 0.071354814f) + set(1.5957691f));
  }
};
struct MishD {
  RW_SLOPED {
    const V e = exp_of(least(set(20.0f), x)), n = e * (e + set(2.0f)), w = n / (n + set(2.0f));
    y = x * w, d = w + x * (e / (one() + e)) * (one() - w * w);
  }
};
struct EluD {
  float a;
  RW_SLOPED {
    const V e = exp_of(least(nought(), x));
    y = greatest(nought(), x) + (e - one()) * set(a), d = if_less(nought(), x, one(), e * set(a));
  }
};
struct SoftplusD { RW_SLOPED { y = greatest(nought(), x) + log_of(one() + exp_of<-1>(absolute(x))), d = sigmoid_of(x); } };
struct SqrtD { RW_SLOPED { y = root(x), d = set(0.5f) / y; } };
struct AbsD { RW_SLOPED { y = absolute(x), d = if_less(x, nought(), set(-1.0f), if_less(nought(), x, one(), nought())); } };
struct NegD { RW_SLOPED { y = negated(x), d = set(-1.0f); } };
struct AffineD { float a, b; RW_SLOPED { y = x * set(a) + set(b), d = set(a); } };
struct ReciprocalD { RW_SLOPED { y = one() / x, d = negated(y * y); } };
struct LogD { RW_SLOPED { y = log_of(x), d = one() / x; } };
struct SquareD { RW_SLOPED { y = x * x, d = x + x; } };
struct GeluErfD {  // f' = Phi(x) + x phi(x); f's sequence gives x Phi(x)
  RW_SLOPED {
    const V t = clamped(x, -6.0f, 6.0f), u = t * t;
    const V g = horner(u, set(3.61115049e-9f) * u + set(-2.66889685e-7f), 7.93817708e-6f, -1.10480069e-4f, -6.62606326e-5f,
                       7.26685673e-2f, 1.59576845f);
    const V share = sigmoid_of(t * g);
    y = x * share, d = share + t * (exp_of(u * set(-0.5f)) * set(0.3989423f));
  }
};

template <class Body>
RW_INLINE void with_sloped(int function, float a, float b, const Body& body) {
  switch (function) {
    case kRelu: return body(ReluD{});
    case kClip: return body(ClipD{a, b});
    case kLeakyRelu: return body(LeakyReluD{a});
    case kSigmoid: return body(SigmoidD{});
    case kSilu: return body(SiluD{});
    case kHardSigmoid: return body(HardSigmoidD{a, b});
    case kHardSwish: return body(HardSwishD{});
    case kTanh: return body(TanhD{});
    case kExp: return body(ExpD{});
    case kGeluTanh: return body(GeluTanhD{});
    case kMish: return body(MishD{});
    case kElu: return body(EluD{a});
    case kSoftplus: return body(SoftplusD{});
    case kSqrt: return body(SqrtD{});
    case kAbs: return body(AbsD{});
    case kNeg: return body(NegD{});
    case kAffine: return body(AffineD{a, b});
    case kReciprocal: return body(ReciprocalD{});
    case kLog: return body(LogD{});
    case kSquare: return body(SquareD{});
    case kGeluErf: return body(GeluErfD{});
    default: return body(NoneD{});
  }
}
#undef RW_SLOPED

// cos(2 pi x) by 1 - 2 sin^2(pi r), r = x - rint(x): the odd series of sin to r^11 errs by (pi / 2)^13 / 13! = 6e-8.
RW_INLINE V cosine_of_turns(V x) {
  const V r = x - nearest_whole(x), u = r * r;
  const V s = r * horner(u, set(-7.3704307e-3f) * u + set(8.2145886e-2f), -0.59926453f, 2.5501640f, -5.1677127f, 3.1415927f);
  return one() - set(2.0f) * s * s;
}

RW_INLINE V slope_of(const TrainEpilogue& e, V v) {
  if (e.slope == SlopeKind::one) return one();
  if (e.slope == SlopeKind::tanh) {
    const V t = set(2.0f) * sigmoid_of((v - below(v) - set(0.5f)) * set(2.0f * e.k)) - one();
    return (one() - t * t) * set(e.top);
  }
  const int terms = static_cast<int>(e.k);
  const V c = cosine_of_turns(v), twice = c + c;
  V before = one(), now = c, total = one();
  for (int n = 1; n <= terms; n++) {  // cos(n x) by Chebyshev's recurrence
    const float w = 2.0f * (1.0f - static_cast<float>(n) / static_cast<float>(terms + 1));
    total = total + set(n % 2 ? -w : w) * now;
    const V next = twice * now - before;
    before = now, now = next;
  }
  return greatest(nought(), total);
}

// f and f' of n floats, a multiple of W; one copy per file and function.
__attribute__((noinline)) void sloped(int function, float a, float b, const float* x, float* y, float* d, int n) {
  with_sloped(function, a, b, [&](const auto& f) {
    for (int i = 0; i < n; i += W) {
      V value, slope;
      f(load(x + i), value, slope);
      store(y + i, value), store(d + i, slope);
    }
  });
}

// Vectors of one channel one behind the other, or of W channels, row by row.
struct Strip {
  const float *acc, *grad;
  float* to;
  int64_t vectors, step;  // step: from vector to vector
  int lanes, last;        // how many elements every vector and the last one have
  int parts;              // vector j belongs to the sums of part j % parts
  RW_MEMBER int in(int64_t j) const { return j + 1 == vectors ? last : lanes; }
};
using Sums = V[kSums][kSumParts];

RW_INLINE V load_any(const float* p, int n) { return n == W ? load(p) : load(p, n); }
RW_INLINE void store_any(float* p, V v, int n) {
  if (n == W) store(p, v);
  else store(p, v, n);
}
RW_INLINE void add_to(V& sum, V v, int n) {
  if (n < W) {  // lanes without an element add +0, whatever was computed in them
    float lanes[W];
    store(lanes, v);
    v = load(lanes, n);
  }
  sum = sum + v;
}

constexpr int kChunk = 512;  // floats that are worked on together

template <EpilogueKind Kind>
void backward_strip(const TrainEpilogue& e, const Line& k, const Strip& s, Sums& sums) {
  constexpr bool has_function = Kind != EpilogueKind::linear, has_table = Kind == EpilogueKind::table;
  constexpr bool rounds = Kind != EpilogueKind::real;
  alignas(64) float xs[kChunk], ys[kChunk], slopes[kChunk];
  const V first_index = nought() - k.zero, last_index = set(static_cast<float>(e.entries - 1)) - k.zero;
  for (int64_t begin = 0; begin < s.vectors; begin += kChunk / W) {
    const int count = s.vectors - begin < kChunk / W ? static_cast<int>(s.vectors - begin) : kChunk / W;
    if constexpr (has_function) {
      for (int j = 0; j < count; j++) {
        const V acc = load_any(s.acc + (begin + j) * s.step, s.in(begin + j));
        store(xs + j * W, has_table ? within(codes_of(acc * k.m), first_index, last_index) * k.s_before : acc * k.s_acc);
      }
      sloped(e.unary, e.a, e.b, xs, ys, slopes, count * W);
    }
    for (int j = 0; j < count; j++) {
      const int64_t at = (begin + j) * s.step;
      const int n = s.in(begin + j), part = static_cast<int>((begin + j) % s.parts);
      const V acc = load_any(s.acc + at, n), grad = load_any(s.grad + at, n);
      if constexpr (!has_function) {
        const V v = clamped(acc * k.m, -32768.0f, 32767.0f), d = if_within(v, k.lo, k.hi, grad * slope_of(e, v), kEdge);
        store_any(s.to + at, d * k.m, n);
        add_to(sums[0][part], d * acc, n);
        continue;
      }
      const V y = load(ys + j * W), slope = load(slopes + j * W);
      if constexpr (!rounds) {
        const V h = grad * slope;
        store_any(s.to + at, h * k.s_acc, n);
        add_to(sums[0][part], h * acc, n);
        continue;
      }
      const V v = clamped(y * k.per_out, -32768.0f, 32767.0f), d = if_within(v, k.lo, k.hi, grad * slope_of(e, v), kEdge);
      V h = d * k.per_out * slope;
      add_to(sums[1][part], d * y, n);
      if constexpr (has_table) {
        const V u = clamped(acc * k.m, -32768.0f, 32767.0f), i = nearest_whole(u);
        add_to(sums[2][part], h * within(i, first_index, last_index), n);
        h = if_within(u, first_index, last_index, h * k.s_before * slope_of(e, u), kEdge);
      }
      store_any(s.to + at, h * (has_table ? k.m : k.s_acc), n);
      add_to(sums[0][part], h * acc, n);
    }
  }
}

void train_backward(const TrainEpilogue& e, const float* acc, const float* grad, float* to, int64_t outer, int64_t channels, int64_t inner,
                    double* sums) {
  const auto strip = [&](const Line& k, const Strip& s, Sums& parts) {
    for (auto& of_sum : parts)
      for (V& part : of_sum) part = nought();
    switch (e.kind) {
      case EpilogueKind::linear: return backward_strip<EpilogueKind::linear>(e, k, s, parts);
      case EpilogueKind::table: return backward_strip<EpilogueKind::table>(e, k, s, parts);
      case EpilogueKind::real: return backward_strip<EpilogueKind::real>(e, k, s, parts);
      default: return backward_strip<EpilogueKind::fine>(e, k, s, parts);
    }
  };
  Sums parts;
  if (inner > 1) {
    for (int64_t row = 0; row < outer * channels; row++) {
      const int64_t c = row % channels;
      const Line k = line_of(e, c, 0);
      for (int64_t begin = row * inner, end = begin + inner; begin < end; begin += kSumBlock) {
        const int64_t n = end - begin < kSumBlock ? end - begin : kSumBlock, vectors = (n + W - 1) / W;
        strip(k, {acc + begin, grad + begin, to + begin, vectors, W, W, static_cast<int>(n - (vectors - 1) * W), kSumParts}, parts);
        for (int s = 0; s < kSums; s++) {
          float lanes[kSumLanes];
          for (int part = 0; part < kSumParts; part++) store(lanes + part * W, parts[s][part]);
          for (int apart = kSumLanes / 2; apart > 0; apart /= 2)
            for (int lane = 0; lane < apart; lane++) lanes[lane] = lanes[lane] + lanes[lane + apart];
          sums[s * channels + c] += static_cast<double>(lanes[0]);
        }
      }
    }
    return;
  }
  for (int64_t c = 0; c < channels; c += W) {
    const int n = channels - c < W ? static_cast<int>(channels - c) : W;
    const Line k = line_of(e, c, n);
    for (int64_t begin = 0; begin < outer; begin += kSumRows) {
      const int64_t rows = outer - begin < kSumRows ? outer - begin : kSumRows, at = begin * channels + c;
      strip(k, {acc + at, grad + at, to + at, rows, channels, n, n, 1}, parts);
      for (int s = 0; s < kSums; s++) {
        float lanes[W];
        store(lanes, parts[s][0]);
        for (int lane = 0; lane < n; lane++) sums[s * channels + c + lane] += static_cast<double>(lanes[lane]);
      }
    }
  }
}

#undef RW_MEMBER

}  // namespace
}  // namespace rw
