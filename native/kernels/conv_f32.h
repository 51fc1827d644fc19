// Dense float convolution, y = unary(bias + sum over taps), as a direct product over taps (gemm_f32.h); compiled once per path.
//
// Packed: Finish (64 bytes with padding), bias (n rounded up to W), then per block of kBlock outputs w[taps][k][block];
// the last block is one or two vectors wide, zeros behind output n.
// Pixels are taken row by row (a tile does not cross rows, so that one step leads from pixel to pixel), unless the rows of
// both images follow each other without a gap: then they are one long row. A row is cut into equal tiles: 26 = 13 + 13.
#pragma once
#include "float_math.h"
#include "gemm_f32.h"
#include "kernels.h"

namespace rw {
namespace {

constexpr size_t kConvHeader = 64;
constexpr int64_t kChunkBytes = 192 * 1024;  // of x: what is read again for each block of outputs shall stay in L2

RW_INLINE int padded(int n) { return (n + W - 1) / W * W; }

size_t conv_bytes(const ConvShape& s) {
  return kConvHeader + sizeof(float) * padded(s.n) * (1 + static_cast<size_t>(s.taps) * s.k);
}

void conv_pack(const ConvShape& s, const ConvWeights& weights, void* packed) {
  const int n = padded(s.n), depth = s.taps * s.k;
  const float* w = static_cast<const float*>(weights.w);
  const Finish finish = finish_of(weights.e.unary, weights.e.unary_a, weights.e.unary_b);
  memset(packed, 0, conv_bytes(s));
  memcpy(packed, &finish, sizeof finish);
  float* bias = reinterpret_cast<float*>(static_cast<uint8_t*>(packed) + kConvHeader);
  if (weights.e.float_bias) memcpy(bias, weights.e.float_bias, sizeof(float) * s.n);
  float* out = bias + n;
  for (int begin = 0; begin < n; begin += kBlock) {
    const int width = smaller(kBlock, n - begin);
    for (int i = 0; i < depth; i++, out += width)
      for (int c = begin; c < smaller(begin + width, s.n); c++) out[c - begin] = w[static_cast<size_t>(c) * depth + i];
  }
}

// Results of a tile that still lack their SiLU. SiLU is one long chain of additions and multiplications; while the next tile keeps the
// multipliers busy and the adders idle, it is worked out there, two vectors at a time. The chain is cut into three parts, done for
// three successive pairs: in one piece (some 95 cycles) it would keep too many later instructions from retiring.
struct Pending {
  static constexpr int kMost = kMaxPixels * kMaxVectors + 10;
  alignas(64) float x[kMost * W], shifted[kMost * W], r[kMost * W], e[kMost * W];  // from 4 * W on
  uint8_t* y;
  int64_t step;
  int at, end;         // the next vector; how many there are, plus four
  int part, parts, n;  // which vector of the pixel is next, of how many; outputs of a pixel

  // The first part of the pair `at`, the second of the pair before it, the third of the one before that. Before the first and behind
  // the last vector there is nothing: those parts work on what the arrays hold, and nobody reads what they make of it.
  RW_INLINE void pair(Pending& q) {
    const int i = q.at * W;
    q.at += 2;
    finish(q, i);
    finish(q, i + W);
    store(q.e + i + 2 * W, exp_middle<-1>(load(q.r + i + 2 * W)));
    store(q.e + i + 3 * W, exp_middle<-1>(load(q.r + i + 3 * W)));
    begin(q, i + 4 * W);
    begin(q, i + 5 * W);
  }

  RW_INLINE void begin(Pending& q, int i) {
    V s, r;
    exp_begin<-1>(load(q.x + i), s, r);
    store(q.shifted + i, s);
    store(q.r + i, r);
  }

  RW_INLINE void finish(Pending& q, int i) {
    if (i < 4 * W || i >= q.end * W) return;
    const V result = load(q.x + i) / (set(1.0f) + exp_end(load(q.e + i), load(q.shifted + i)));
    float* out = reinterpret_cast<float*>(q.y) + q.part * W;
    const int exist = q.n - q.part * W;
    if (exist >= W) store(out, result);
    else store(out, result, exist);
    if (++q.part == q.parts) q.part = 0, q.y += q.step;
  }
};

__attribute__((noinline)) void finish_pending(Pending& q) {
  while (q.at < q.end) Pending::pair(q);
}

constexpr int kLeastDepth = 48;  // below, the next tile is too short to hide anything in

struct ConvJob {
  const ConvShape* shape;
  const ConvRun* run;
  const Finish* finish;
  const float* bias;  // of this block
  const float* w;
  int n;              // outputs of this block that exist
  Pending* pending;
};

template <int P, int NV, int... I>
RW_INLINE void put_clamped(const V* acc, const Finish& f, uint8_t* y, int64_t step, int n, Indices<I...>) {
  const V lo = set(f.lo), hi = set(f.hi);
  if (n == NV * W)
    ((store(reinterpret_cast<float*>(y + (I / NV) * step) + (I % NV) * W, least(hi, greatest(lo, acc[I])))), ...);
  else
    ((store(reinterpret_cast<float*>(y + (I / NV) * step) + (I % NV) * W, least(hi, greatest(lo, acc[I])),
            I % NV == NV - 1 ? n - (NV - 1) * W : W)), ...);
}

template <int... I> RW_INLINE void put_all(const V* acc, float* y, Indices<I...>) { ((store(y + I * W, acc[I])), ...); }

// SiLU of the results of a tile, four vectors at a time (the buffer has a multiple of four), straight into the image.
template <int NV> __attribute__((noinline)) void put_silu(const float* x, int vectors, uint8_t* y, int64_t step, int n) {
  for (int i = 0; i < vectors; i += 4, y += 4 / NV * step) {
    const Four r = silu_of(Four{{load(x + i * W), load(x + (i + 1) * W), load(x + (i + 2) * W), load(x + (i + 3) * W)}});
    if (i + 4 <= vectors && n == NV * W) {
      for (int v = 0; v < 4; v++) store(reinterpret_cast<float*>(y + v / NV * step) + v % NV * W, r.v[v]);
    } else {
      for (int v = 0; v < smaller(4, vectors - i); v++)
        store(reinterpret_cast<float*>(y + v / NV * step) + v % NV * W, r.v[v], smaller(W, n - v % NV * W));
    }
  }
}

template <int P, int NV>
__attribute__((noinline)) void conv_tile(const ConvJob& job, const uint8_t* x, uint8_t* y) {
  const ConvRun& run = *job.run;
  V acc[P * NV];
  Tile<P, NV>::run(acc, x, run.x_pixel, run.tap, job.shape->taps, job.shape->k, job.w, job.bias);
  if (job.finish->clamps) return put_clamped<P, NV>(acc, *job.finish, y, run.y_pixel, job.n, typename UpTo<P * NV>::type{});
  alignas(64) float buffer[(P * NV + 3) / 4 * 4 * W];
  put_all(acc, buffer, typename UpTo<P * NV>::type{});
  if (job.finish->function == kSilu) return put_silu<NV>(buffer, P * NV, y, run.y_pixel, job.n);
  apply_unary(buffer, buffer, P * NV * W, job.finish->function, job.finish->a, job.finish->b);
  for (int p = 0; p < P; p++) {
    float* out = reinterpret_cast<float*>(y + p * run.y_pixel);
    for (int v = 0; v < NV; v++)
      store(out + v * W, load(buffer + (p * NV + v) * W), smaller(W, job.n - v * W));
  }
}

template <int P, int NV>
__attribute__((noinline)) void conv_tile_silu(const ConvJob& job, const uint8_t* x, uint8_t* y) {
  const ConvRun& run = *job.run;
  Pending& q = *job.pending;
  const int depth = job.shape->taps * job.shape->k;
  const int left = q.end - q.at, pause = left > 0 ? larger(1, 2 * depth / (left + 1)) : INT32_MAX;  // for two vectors
  V acc[P * NV];
  Tile<P, NV>::run(acc, x, run.x_pixel, run.tap, job.shape->taps, job.shape->k, job.w, job.bias, pause, [&] {
    if (q.at >= q.end) return;
    Pending::pair(q);
  });
  if (q.at < q.end) finish_pending(q);
  put_all(acc, q.x + 4 * W, typename UpTo<P * NV>::type{});
  q.y = y, q.step = run.y_pixel, q.at = 0, q.end = P * NV + 4, q.part = 0, q.parts = NV, q.n = job.n;
}

using ConvTile = void (*)(const ConvJob&, const uint8_t*, uint8_t*);
template <int NV, class> struct ConvTiles;
template <int NV, int... I> struct ConvTiles<NV, Indices<I...>> {
  static constexpr ConvTile plain[] = {conv_tile<I + 1, NV>...}, silu[] = {conv_tile_silu<I + 1, NV>...};
};
template <int NV> using AllTiles = ConvTiles<NV, UpTo<kMaxPixels>::type>;

// One block of outputs (from output c on) of the pixels [begin, end), row by row.
void conv_block(const ConvJob& job, const ConvTile* table, int64_t row_pixels, int c, int64_t begin, int64_t end) {
  const ConvRun& run = *job.run;
  while (begin < end) {
    const int64_t row = begin / row_pixels, column = begin % row_pixels;
    const int64_t count = row_pixels - column < end - begin ? row_pixels - column : end - begin;
    const int64_t tiles = (count + kMaxPixels - 1) / kMaxPixels;
    const uint8_t* x = run.x + row * run.x_row + column * run.x_pixel;
    uint8_t* y = static_cast<uint8_t*>(run.y) + row * run.y_row + column * run.y_pixel + c * static_cast<int64_t>(sizeof(float));
    for (int64_t t = 0, m = 0; t < tiles; t++) {
      const int64_t next = count * (t + 1) / tiles;
      table[next - m - 1](job, x + m * run.x_pixel, y + m * run.y_pixel);
      m = next;
    }
    begin += count;
  }
}

// All blocks of outputs over a chunk of pixels that stays in the cache, then the next chunk.
void conv_run(const ConvShape& s, const ConvRun& run, int64_t pixel_begin, int64_t pixel_end) {
  const uint8_t* packed = static_cast<const uint8_t*>(run.packed);
  const Finish* finish = reinterpret_cast<const Finish*>(packed);
  const float* bias = reinterpret_cast<const float*>(packed + kConvHeader);
  const int n = padded(s.n);
  const int64_t depth = static_cast<int64_t>(s.taps) * s.k;
  const bool silu = finish->function == kSilu && depth >= kLeastDepth;
  const bool dense = run.x_row == run.out_w * run.x_pixel && run.y_row == run.out_w * run.y_pixel;
  const int64_t row_pixels = dense ? pixel_end : run.out_w;
  int64_t chunk = kChunkBytes / run.x_pixel / kMaxPixels * kMaxPixels;
  if (chunk < 4 * kMaxPixels) chunk = 4 * kMaxPixels;
  Pending pending;
  memset(&pending, 0, sizeof pending);
  for (int64_t begin = pixel_begin; begin < pixel_end; begin += chunk) {
    const int64_t end = begin + chunk < pixel_end ? begin + chunk : pixel_end;
    for (int c = 0; c < n; c += kBlock) {
      const ConvJob job = {&s, &run, finish, bias + c, bias + n + c * depth, smaller(kBlock, s.n - c), &pending};
      if (n - c > W) conv_block(job, silu ? AllTiles<2>::silu : AllTiles<2>::plain, row_pixels, c, begin, end);
      else conv_block(job, AllTiles<1>::plain, row_pixels, c, begin, end);
    }
  }
  finish_pending(pending);
}

}  // namespace
}  // namespace rw
