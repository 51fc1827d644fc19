// The kernel interface: plain structs and function pointers, no plan, no threads, no allocation.
//
// A kernel computes a range of its output. It may be called from several threads at once with disjoint ranges.
// Semantics: docs/engine.md ("One arithmetic"). Every path of a kernel gives the same integers.
//
// Files: <group>_portable.cc, <group>_avx2.cc, <group>_avx512vnni.cc. They are compiled with different instruction sets, so
// they share no inline function with external linkage and no template instance: everything in them is static or in an
// anonymous namespace, and they include no header of the standard library that has inline code (cstdint, cstddef, cstring
// and immintrin.h only).
#pragma once
#include <cstddef>
#include <cstdint>

namespace rw {

enum class Isa : int { portable = 0, avx2 = 1, avx512vnni = 2 };

// An image tensor: element (y, x, c) lies at data + y*row + x*pixel + c*sizeof(element). Steps are in bytes; a step of 0 broadcasts.
struct Image {
  void* data;
  int64_t row, pixel;
  int h, w, c;
};

enum class EpilogueKind : int { linear = 0, table = 1, poly = 2, real = 3, fine = 4 };

constexpr int kFineEntries = 1024;

// How accumulators become results; canonical (channel c at index c). All pointers may be unaligned and have exactly n entries.
// The fixed-point form has its epilogue behind the kernel (FixedKernel): for it, kind is real and scale null, and the int32
// accumulators are written as they are where floats would be.
struct Epilogue {
  EpilogueKind kind;
  const int32_t* bias;     // integer form
  const float* float_bias; // float form
  const float* scale;      // null with real: no scaling
  const int32_t* zero;
  const float* out_scale;  // poly
  const uint8_t* table;    // 256 entries, fine: 1024
  const float* poly;       // c0[32], c1[32], c2[32]
  float poly_b;
  int lo, hi;
  int unary;               // real: a Unary
  float unary_a, unary_b;
};

// A dense convolution as a sum over taps: each tap reads k contiguous elements at x + tap[t]. A 1x1 convolution has one
// tap. Where the pixels of a row are dense (pixel == cin elements, dilation 1), the op layer merges the kw taps of a row
// into one of k = kw * cin, so that a stem on 3 channels does not waste lanes.
//
// Reading over the end: a kernel may read up to 64 bytes behind the last element of a tap (weights there are zero).
// Writing: never beyond channel n of a pixel, and never another pixel's bytes.
struct ConvShape {
  int taps, k, n;         // n output channels
  bool out_float;         // y is f32 (real), else u8
};

struct ConvWeights {      // canonical: w[n][taps][k], s8 or f32
  const void* w;
  Epilogue e;
};

struct ConvRun {
  const uint8_t* x;        // the pixel that tap offset 0 of output pixel (0, 0) refers to
  int64_t x_row, x_pixel;  // bytes from one output row / pixel to the next, in the input (stride included)
  const int32_t* tap;      // taps byte offsets, may be negative
  const void* packed;      // what pack() wrote, 64-byte aligned
  void* y;
  int64_t y_row, y_pixel;  // bytes
  int out_w;               // output pixel m is (m / out_w, m % out_w)
};

// One path of a convolution kernel. `packed` holds weights and epilogue constants in the path's own order.
struct ConvKernel {
  size_t (*packed_bytes)(const ConvShape&);
  void (*pack)(const ConvShape&, const ConvWeights&, void* packed);
  void (*run)(const ConvShape&, const ConvRun&, int64_t pixel_begin, int64_t pixel_end);
  int tile;                // pixels a range should be a multiple of
};

// Depthwise: weights w[kh][kw][c]; x is the pixel of tap (0, 0) of output pixel (0, 0): padding is already in the border.
// Reading over the end and writing: as ConvShape. With stride 1 and 3x3, rows are computed in pairs: even ranges are cheaper.
struct DepthwiseShape {
  int kh, kw, sh, sw, dh, dw, c;
  bool out_float;
};

struct DepthwiseRun {
  const uint8_t* x;
  int64_t x_row, x_pixel;  // bytes between neighbouring input rows / pixels (stride NOT included)
  const void* packed;
  void* y;
  int64_t y_row, y_pixel;
  int out_h, out_w;
};

struct DepthwiseKernel {
  size_t (*packed_bytes)(const DepthwiseShape&);
  void (*pack)(const DepthwiseShape&, const ConvWeights&, void* packed);
  void (*run)(const DepthwiseShape&, const DepthwiseRun&, int row_begin, int row_end);  // output rows
};

// Winograd: dense 3x3, stride 1, dilation 1, float, x with a border of one pixel. A range counts tiles of `tile` x `tile` outputs.
struct WinogradShape {
  int cin, cout, out_h, out_w;
};

struct WinogradRun {
  const float* x;          // pixel (-1, -1)
  int64_t x_row, x_pixel;  // bytes
  const void* packed;
  float* y;
  int64_t y_row, y_pixel;
  void* scratch;           // scratch_bytes, private to the thread, 64-byte aligned
};

struct WinogradKernel {
  int tile;                // 2 or 4
  size_t (*packed_bytes)(const WinogradShape&);
  void (*pack)(const WinogradShape&, const ConvWeights&, void* packed);   // canonical w[cout][3][3][cin]
  size_t (*scratch_bytes)(const WinogradShape&);
  void (*run)(const WinogradShape&, const WinogradRun&, int64_t tile_begin, int64_t tile_end);
};

// The epilogues of the fixed-point form (docs/engine.md), in integers alone.
enum class FixedKind : int { clamp = 0, table = 1, curve = 2 };

constexpr int kCurveEntries = 513;

struct FixedEpilogue {      // n entries each; M in 0..2^31-1, S in 2..62
  FixedKind kind;
  int n;
  const int32_t *m, *s, *zero;
  const int32_t *m2, *s2, *zero2;   // curve
  const uint8_t* table;     // table: 256 entries
  const int16_t* curve;     // curve: kCurveEntries
  int lo, hi;               // clamp and curve
};

// Accumulators, pixel by pixel without gaps, to codes, y_pixel bytes from one pixel to the next.
struct FixedKernel {
  size_t (*packed_bytes)(int n);
  void (*pack)(const FixedEpilogue&, void* packed);
  void (*run)(const void* packed, const int32_t* acc, uint8_t* y, int64_t y_pixel, int64_t pixels);
};

struct AddFixedParams { int za, zb, lo, hi; const int32_t *a, *b, *zero, *s; };   // c entries each; |a|, |b| to 2^21, s in 1..31
struct MulFixedParams { int za, zb, zy, lo, hi, m, s; };
struct PoolFixedParams { int kh, kw, sh, sw, pad_top, pad_left; bool count_padding; int zx, zy; const int32_t *m, *s; };
struct LinearFixedParams { const int32_t *row0, *row1, *wy, *column0, *column1, *wx; };   // weights in 1/2048

struct AddParams { int za, zb, lo, hi; const float *ma, *mb; const int32_t* zero; };            // c entries each
struct MulParams { int za, zb, zy, lo, hi; float m; };
struct PoolParams { int kh, kw, sh, sw, pad_top, pad_left; bool count_padding; int zx, zy; const float* m; };
struct LinearParams { const int32_t *row0, *row1; const float* wy; const int32_t *column0, *column1; const float* wx; };

// Rows [begin, end) of y in every function below.
using AddFn = void (*)(const Image& a, const Image& b, const Image& y, const AddParams&, int begin, int end);
using MulFn = void (*)(const Image& a, const Image& b, const Image& y, const MulParams&, int begin, int end);
using PoolFn = void (*)(const Image& x, const Image& y, const PoolParams&, int begin, int end);
using NearestFn = void (*)(const Image& x, const Image& y, int element_bytes, const int32_t* row, const int32_t* column, int begin, int end);
using LinearFn = void (*)(const Image& x, const Image& y, const LinearParams&, int begin, int end);
using TableFn = void (*)(const Image& x, const Image& y, const uint8_t* table, int begin, int end);
using GatherFn = void (*)(const Image& x, const Image& y, int element_bytes, const int32_t* index, int begin, int end);

using AddFixedFn = void (*)(const Image& a, const Image& b, const Image& y, const AddFixedParams&, int begin, int end);
using MulFixedFn = void (*)(const Image& a, const Image& b, const Image& y, const MulFixedParams&, int begin, int end);
using PoolFixedFn = void (*)(const Image& x, const Image& y, const PoolFixedParams&, int begin, int end);
using LinearFixedFn = void (*)(const Image& x, const Image& y, const LinearFixedParams&, int begin, int end);

// A run of n elements with steps in elements; the op layer walks the outer dimensions.
using QuantizeFn = void (*)(const float* x, int64_t x_step, uint8_t* y, int64_t y_step, int64_t n, float scale, int zero);
using QuantizeRowFn = void (*)(const float* x, uint8_t* y, int64_t n, const float* scale, const int32_t* zero);  // per element
using DequantizeFn = void (*)(const uint8_t* x, int64_t x_step, float* y, int64_t y_step, int64_t n, float scale, int zero);
using DequantizeRowFn = void (*)(const uint8_t* x, float* y, int64_t n, const float* scale, const int32_t* zero);
// A plane-wise image (3 planes of w floats per row) to interleaved codes: the usual network input.
using QuantizePlanesFn = void (*)(const float* const* planes, int channels, uint8_t* y, int64_t y_pixel, int w, const float* scale, const int32_t* zero);
using TransposeFn = void (*)(const void* x, int64_t x_row, void* y, int64_t y_row, int rows, int columns, int element_bytes);  // y[c][r] = x[r][c], steps in bytes
using UnaryFn = void (*)(const float* x, float* y, int64_t n, int function, float a, float b);
using BinaryFn = void (*)(const float* a, int64_t a_step, const float* b, int64_t b_step, float* y, int64_t n, int function, int unary, float ua, float ub);
using SoftmaxFn = void (*)(const float* x, float* y, int64_t n);

// Detection (native/detect). Boxes best first, as arrays padded to whole groups of 16; `alive` has a bit per box, 16 to a group.
struct BoxArrays {
  const float *x1, *y1, *x2, *y2;
  const float* bound;      // area * t / (1 + t) * (1 - 2^-18) for the threshold t: IoU > t only if intersection > bound + bound
  const int32_t* label;    // boxes of different labels never meet; null: all have one
  bool tame;               // `bound` holds: no product of coordinates can underflow or overflow in float32
};

// Clears the alive bits of all boxes in groups [begin, end) whose IoU with one of `count` boxes is above the threshold, decided
// as in float64 (detect/boxes.py); returns how many it cleared.
using SuppressFn = int64_t (*)(const BoxArrays&, const int32_t* boxes, int count, double threshold, uint16_t* alive, int64_t begin, int64_t end);
// Indices of the elements that are not below the threshold (so NaN is among them), ascending; returns their number. `index` has n + 16 entries.
using ScanFn = int64_t (*)(const float* x, int64_t n, float threshold, int32_t* index);
// Pixels through a table per channel: y[i * y_pixel + c] = table[c][x[3 * i + c]], three channels; tables of 256 one after another.
using CodesFn = void (*)(const uint8_t* x, int64_t pixels, const uint8_t* table, uint8_t* y, int64_t y_pixel);

// OpenCV's linear resize of interleaved 3-channel u8 rows. Horizontally, in 1/2048 and dropping 4 bits:
// y[3 * i + c] = (x[3 * column[i] + c] * weight[2 * i] + x[3 * column[i] + 3 + c] * weight[2 * i + 1]) >> 4.
struct ResizeShape {
  int in_w, out_w;         // pixels; column[i] < in_w, and weight[2 * i + 1] is 0 where column[i] is the last
  bool swap;               // the first and third channel change places
};

struct ResizeKernel {
  size_t (*packed_bytes)(const ResizeShape&);
  void (*pack)(const ResizeShape&, const int32_t* column, const int16_t* weight, void* packed);
  void (*row)(const ResizeShape&, const void* packed, const uint8_t* x, int16_t* y);  // reads exactly in_w pixels; y has 64 entries of slack
  // Vertically: y[i] = (((a[i] * wa) >> 16) + ((b[i] * wb) >> 16) + 2) >> 2
  void (*blend)(const int16_t* a, const int16_t* b, int wa, int wb, uint8_t* y, int64_t n);
};

// Training (run/torch/fused.py): a layer's epilogue over floats that hold its accumulators, with the bias in them. Codes are
// held without their zero point. Formulas: train_f32.h.
enum class SlopeKind : int { one = 0, tanh = 1, fejer = 2 };   // surrogates.py: ste and lsq, dsq, fourier

struct TrainEpilogue {      // an entry per channel where nothing else is said; null where the kind has none
  EpilogueKind kind;
  int unary;
  float a, b;
  const float *m, *lo, *hi; // lo, hi: codes the result is clamped to
  const float* zero;        // table, fine: index of 0
  const float* table;       // table, fine: `entries` codes
  int entries;
  const float* poly;        // poly: c0[32], c1[32], c2[32]
  float poly_b;
  const float* out_scale;   // poly
  SlopeKind slope;
  float k, top;             // tanh: k and k / (2 tanh(k / 2)); fejer: the number of terms
  const float *s_acc, *s_out, *s_before;   // backward: s_x * s_w, s_y, s_p (table)
};

// Arrays are [outer][channels][inner]. `to` is the gradient of acc; sums is [3][channels] and is added to.
struct TrainKernel {
  void (*forward)(const TrainEpilogue&, const float* acc, float* y, int64_t outer, int64_t channels, int64_t inner);
  void (*backward)(const TrainEpilogue&, const float* acc, const float* grad, float* to, int64_t outer, int64_t channels, int64_t inner, double* sums);
};

// As many multiply-adds per second as the path's instructions allow: each does `rounds` of them and returns how many operations (two per multiply-add) that was.
struct PeakKernel {
  int64_t (*int8)(int64_t rounds);
  int64_t (*float32)(int64_t rounds);
};

// Every kernel of one path. Where a path has none of its own, the row names the next simpler one.
struct Kernels {
  Isa isa;
#define ROADWORTHY_KERNEL(name, type, avx2, avx512vnni) type name;
#include "kernels.inc"
#undef ROADWORTHY_KERNEL
};

const Kernels& kernels(Isa isa);

#define ROADWORTHY_KERNEL(name, type, avx2, avx512vnni) \
  extern const type name##_portable;                    \
  extern const type name##_avx2;                        \
  extern const type name##_avx512vnni;
#include "kernels.inc"
#undef ROADWORTHY_KERNEL

}  // namespace rw
