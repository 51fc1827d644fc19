// Depthwise float convolution, W channels at a time; compiled once per path.
//
// Packed: Finish (64 bytes), bias (c rounded up to W), then per W channels w[kh*kw][W].
//
// For the usual kernels (3x3 and 5x5, stride 1 and 2, not dilated) a row is computed by sliding over the columns of the input:
// each element is loaded once and added to every output it belongs to. With stride S and width K, A = ceil(K/S) outputs
// are open at a time; column S*j + s is tap S*i + s of output j - i, for i < A. At step j output j opens (with the bias)
// and output j - (A-1) is finished. In the steps before output 0 is finished nothing is stored; in those after output
// out_w - 1 has been opened only taps of open outputs are read, so nothing beyond the last pixel is touched.
#pragma once
#include "float_math.h"
#include "kernels.h"

namespace rw {
namespace {

constexpr size_t kDepthwiseHeader = 64;

size_t depthwise_bytes(const DepthwiseShape& s) {
  return kDepthwiseHeader + sizeof(float) * static_cast<size_t>((s.c + W - 1) / W * W) * (1 + s.kh * s.kw);
}

void depthwise_pack(const DepthwiseShape& s, const ConvWeights& weights, void* packed) {
  const int c = (s.c + W - 1) / W * W, taps = s.kh * s.kw;
  const float* w = static_cast<const float*>(weights.w);
  const Finish finish = finish_of(weights.e.unary, weights.e.unary_a, weights.e.unary_b);
  memset(packed, 0, depthwise_bytes(s));
  memcpy(packed, &finish, sizeof finish);
  float* bias = reinterpret_cast<float*>(static_cast<uint8_t*>(packed) + kDepthwiseHeader);
  if (weights.e.float_bias) memcpy(bias, weights.e.float_bias, sizeof(float) * s.c);
  float* out = bias + c;
  for (int begin = 0; begin < c; begin += W)
    for (int t = 0; t < taps; t++, out += W)
      for (int i = begin; i < smaller(begin + W, s.c); i++) out[i - begin] = w[static_cast<size_t>(t) * s.c + i];
}

struct DepthwiseRow {
  const uint8_t* x;        // tap (0, 0) of output 0 of the row, at the first of the channels
  int64_t x_row, x_pixel;
  uint8_t* y;
  int64_t y_pixel;
  int out_w, n;            // n channels exist, 1..W
  const float* w;          // [kh*kw][W]
  const float* bias;       // [W]
};

RW_INLINE V load_some(const uint8_t* p, int n, bool full) {
  return full ? load(reinterpret_cast<const float*>(p)) : load(reinterpret_cast<const float*>(p), n);
}
RW_INLINE void store_some(uint8_t* p, V v, int n, bool full) {
  if (full) store(reinterpret_cast<float*>(p), v);
  else store(reinterpret_cast<float*>(p), v, n);
}

template <int K, int S, bool Full, class Pipe> struct Slide {
  static constexpr int A = (K + S - 1) / S;
  // Column S*j + s: its K elements go to the open outputs i for which it has a tap; with `ending`, to those with i >= from.
  template <bool Ending> RW_INLINE void column(V* open, const V* w, const uint8_t* x, int64_t x_row, int n, int s, int from) {
#pragma GCC unroll 8
    for (int r = 0; r < K; r++) {
      const V value = load_some(x + r * x_row, n, Full);
#pragma GCC unroll 8
      for (int i = 0; i < A; i++)
        if (S * i + s < K && (!Ending || i >= from)) open[i] = fused(value, w[r * K + S * i + s], open[i]);
    }
  }

  static __attribute__((noinline)) void row(const DepthwiseRow& job) {
    const uint8_t* x = job.x;
    uint8_t* y = job.y;
    const int64_t x_row = job.x_row, x_pixel = job.x_pixel, y_pixel = job.y_pixel;
    const int n = job.n, out_w = job.out_w;
    V w[K * K], open[A];
#pragma GCC unroll 32
    for (int i = 0; i < K * K; i++) w[i] = load(job.w + i * W);
    const V bias = load(job.bias);
    Pipe pipe;
    pipe.clear();
#pragma GCC unroll 8
    for (int i = 0; i < A; i++) open[i] = bias;
    for (int j = 0; j < out_w + A - 1; j++) {
      if (j < out_w) {
#pragma GCC unroll 4
        for (int s = 0; s < S; s++, x += x_pixel) column<false>(open, w, x, x_row, n, s, 0);
      } else {
        const int from = j - out_w + 1;
#pragma GCC unroll 4
        for (int s = 0; s < S; s++, x += x_pixel)
          if (S * from + s < K) column<true>(open, w, x, x_row, n, s, from);
      }
      if (j >= A - 1) {
        const V result = pipe.next(open[A - 1]);
        if (j >= A - 1 + Pipe::kLag) {
          store_some(y, result, n, Full);
          y += y_pixel;
        }
      }
#pragma GCC unroll 8
      for (int i = A - 1; i > 0; i--) open[i] = open[i - 1];
      open[0] = bias;
    }
    for (int j = 0; j < Pipe::kLag; j++) {  // what is still in the pipeline; a short row has not filled it
      const V result = pipe.next(bias);
      if (out_w + j < Pipe::kLag) continue;
      store_some(y, result, n, Full);
      y += y_pixel;
    }
  }
};

void depthwise_any(const DepthwiseRow& job, const DepthwiseShape& s) {
  for (int j = 0; j < job.out_w; j++) {
    V sum = load(job.bias);
    const uint8_t* corner = job.x + static_cast<int64_t>(j) * s.sw * job.x_pixel;
    for (int r = 0; r < s.kh; r++)
      for (int q = 0; q < s.kw; q++)
        sum = fused(load_some(corner + r * s.dh * job.x_row + q * s.dw * job.x_pixel, job.n, job.n == W),
                    load(job.w + (r * s.kw + q) * W), sum);
    store_some(job.y + j * job.y_pixel, sum, job.n, job.n == W);
  }
}

using SlideRow = void (*)(const DepthwiseRow&);
template <int K, int S, class F> SlideRow slide_row(bool full) { return full ? Slide<K, S, true, F>::row : Slide<K, S, false, F>::row; }

template <class F> SlideRow special_row(const DepthwiseShape& s, bool full) {
  if (s.kh != s.kw || s.sh != s.sw || s.dh != 1 || s.dw != 1) return nullptr;
  if (s.kh == 3 && s.sh == 1) return slide_row<3, 1, F>(full);
  if (s.kh == 3 && s.sh == 2) return slide_row<3, 2, F>(full);
  if (s.kh == 5 && s.sh == 1) return slide_row<5, 1, F>(full);
  if (s.kh == 5 && s.sh == 2) return slide_row<5, 2, F>(full);
  return nullptr;
}

void depthwise_run(const DepthwiseShape& s, const DepthwiseRun& run, int row_begin, int row_end) {
  const uint8_t* packed = static_cast<const uint8_t*>(run.packed);
  const Finish& finish = *reinterpret_cast<const Finish*>(packed);
  const float* bias = reinterpret_cast<const float*>(packed + kDepthwiseHeader);
  const float* w = bias + (s.c + W - 1) / W * W;
  const bool silu = finish.function == kSilu;  // worked out along with the sums, which leave the adders idle
  const SlideRow whole_row = silu ? special_row<SiluPipe>(s, true) : special_row<NoPipe>(s, true);
  const SlideRow part_row = silu ? special_row<SiluPipe>(s, false) : special_row<NoPipe>(s, false);
  for (int row = row_begin; row < row_end; row++) {
    const uint8_t* x = run.x + static_cast<int64_t>(row) * s.sh * run.x_row;
    uint8_t* y = static_cast<uint8_t*>(run.y) + row * run.y_row;
    for (int c = 0; c < s.c; c += W) {
      const int64_t at = static_cast<int64_t>(c) * sizeof(float);
      const DepthwiseRow job = {x + at, run.x_row, run.x_pixel, y + at, run.y_pixel, run.out_w, smaller(W, s.c - c),
                                w + static_cast<size_t>(c) * s.kh * s.kw, bias + c};
      const SlideRow special = job.n == W ? whole_row : part_row;
      if (special) special(job);
      else depthwise_any(job, s);
    }
    // The activation over the finished row, while it is still in the first cache.
    if (finish.function == kNone || (silu && whole_row)) continue;
    const bool dense = run.y_pixel == static_cast<int64_t>(s.c * sizeof(float));
    for (int j = 0; j < (dense ? 1 : run.out_w); j++) {
      float* p = reinterpret_cast<float*>(y + j * run.y_pixel);
      apply_unary(p, p, dense ? static_cast<int64_t>(s.c) * run.out_w : s.c, finish.function, finish.a, finish.b);
    }
  }
}

}  // namespace
}  // namespace rw
