// Winograd convolution, 3x3 with stride 1, in float; compiled once per path.
// Source of the method: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016.
//
// The algebra, in one dimension, for M outputs of a filter of 3 taps. The product of a polynomial g of degree 2 and one of
// degree M-1 has M + 2 coefficients; it is fixed by its values at M + 1 points p_i and by its leading coefficient (the
// "point" infinity). Evaluating, multiplying value by value and interpolating is thus a polynomial product with M + 2
// multiplications. Interpolation (Lagrange) is sum_i v_i / N_i * L_i(x) with L_i(x) = prod_{j != i} (x - p_j),
// N_i = L_i(p_i), plus v_inf * prod_j (x - p_j). A filter is the transpose of a product, so the matrices change places:
//
//   y = At [(G g) * (Bt d)]      d: M + 2 inputs, g: 3 taps, y: M outputs, * element by element
//   row i of G:   (1, p_i, p_i^2) / N_i              and (0, 0, 1) for infinity
//   column i of At: (1, p_i, .., p_i^(M-1))          and (0, .., 0, 1)
//   row i of Bt:  the coefficients of L_i, lowest first; and those of prod_j (x - p_j)
//
//   M = 2, points 0, 1, -1:        Bt rows: (x-1)(x+1) = (-1, 0, 1, 0); x(x+1) = (0, 1, 1, 0); x(x-1) = (0, -1, 1, 0); x^3-x = (0, -1, 0, 1)
//   M = 4, points 0, 1, -1, 2, -2: Bt rows: (x^2-1)(x^2-4) = (4, 0, -5, 0, 1, 0); x(x+1)(x^2-4) = (0, -4, -4, 1, 1, 0);
//       x(x-1)(x^2-4) = (0, 4, -4, -1, 1, 0); x(x+2)(x^2-1) = (0, -2, -1, 2, 1, 0); x(x-2)(x^2-1) = (0, 2, -1, -2, 1, 0);
//       x(x^2-1)(x^2-4) = (0, 4, 0, -5, 0, 1)
//
// In two dimensions both transforms are applied to columns and rows: (M+2)^2 products for M^2 outputs of 9 taps each, that
// is 2.25 (M = 2) and 4 (M = 4) times fewer multiplications. Over all input channels the products of one of the (M+2)^2
// elements are a matrix product tiles x cin x cout.
//
// Error: to first order, with u = 2^-24, |error of an output| <= u * (cin + 21) * [|At| (sum_c (|G||g||Gt|) * (|Bt||d||B|)) |A|]
// (+ u |bias|): cin fused multiply-adds; 3 + 3 roundings of the input transform, 1 of the weights (made in double), 4 + 4 of the output
// transform, the rest is slack for the scalings, which are exact in M = 2 and fused or powers of two in M = 4. The bracket is what the
// signs cannot cancel: on random data M = 4 loses about 2 bits more than M = 2, which is as good as a direct sum.
//
// Order of work: a block of tiles is transformed into V[element][tile][cin] (half of the second cache), then for every block
// of outputs the products M[element][tile][block] are made and at once transformed back.
#pragma once
#include "float_math.h"
#include "gemm_f32.h"
#include "kernels.h"

namespace rw {
namespace {

constexpr size_t kWinogradHeader = 64;
constexpr int kStagger = 16;  // floats between elements: a stride of 4096 bytes would put all of them into one set of the cache
alignas(64) constexpr float kZeros[kBlock] = {};

RW_INLINE int up_to_vector(int n) { return (n + W - 1) / W * W; }

template <int M> struct Winograd {
  static constexpr int A = M + 2, E = A * A;

  // How tiles and channels lie in the scratch memory.
  struct Plan {
    int tiles;            // of a block
    int64_t row, v_step;  // floats from tile to tile and from element to element in V
    int64_t m_step;       // from element to element in M
  };

  static Plan plan(const WinogradShape& s) {
    Plan p;
    p.row = up_to_vector(s.cin);
    if (p.row % 1024 == 0) p.row += W;
    const int64_t fit = kVBytes / (E * p.row * static_cast<int64_t>(sizeof(float)));
    p.tiles = static_cast<int>(fit < kMaxPixels ? kMaxPixels : fit > kMostTiles ? kMostTiles : fit / kMaxPixels * kMaxPixels);
    p.v_step = p.tiles * p.row + kStagger;
    p.m_step = static_cast<int64_t>(p.tiles) * kBlock + kStagger;
    return p;
  }
  static constexpr int64_t kVBytes = 512 * 1024;
  static constexpr int kMostTiles = 4 * kMaxPixels;

  static size_t packed_bytes(const WinogradShape& s) {
    return kWinogradHeader + sizeof(float) * static_cast<size_t>(up_to_vector(s.cout)) * (1 + static_cast<size_t>(E) * s.cin);
  }

  static size_t scratch_bytes(const WinogradShape& s) {
    const Plan p = plan(s);
    return sizeof(float) * static_cast<size_t>(E * (p.v_step + p.m_step));
  }

  // G g Gt of one filter, in double; element (i, j) is row i, column j.
  static void transform_weights(const float* g, int64_t step, double* out) {
    const double points[5] = {0, 1, -1, 2, -2};
    double matrix[A][3];
    for (int i = 0; i < A - 1; i++) {
      double n = 1;
      for (int j = 0; j < A - 1; j++)
        if (j != i) n *= points[i] - points[j];
      for (int k = 0; k < 3; k++) matrix[i][k] = (k == 0 ? 1 : k == 1 ? points[i] : points[i] * points[i]) / n;
    }
    matrix[A - 1][0] = matrix[A - 1][1] = 0;
    matrix[A - 1][2] = 1;
    for (int i = 0; i < A; i++)
      for (int j = 0; j < A; j++) {
        double sum = 0;
        for (int r = 0; r < 3; r++)
          for (int q = 0; q < 3; q++) sum += matrix[i][r] * matrix[j][q] * static_cast<double>(g[(r * 3 + q) * step]);
        out[i * A + j] = sum;
      }
  }

  // Packed: Finish (64 bytes), bias, then per block of outputs [element][cin][block].
  static void pack(const WinogradShape& s, const ConvWeights& weights, void* packed) {
    const int n = up_to_vector(s.cout);
    const float* w = static_cast<const float*>(weights.w);
    const Finish finish = finish_of(weights.e.unary, weights.e.unary_a, weights.e.unary_b);
    memset(packed, 0, packed_bytes(s));
    memcpy(packed, &finish, sizeof finish);
    float* bias = reinterpret_cast<float*>(static_cast<uint8_t*>(packed) + kWinogradHeader);
    if (weights.e.float_bias) memcpy(bias, weights.e.float_bias, sizeof(float) * s.cout);
    float* out = bias + n;
    for (int o = 0; o < s.cout; o++) {
      const int begin = o / kBlock * kBlock, width = smaller(kBlock, n - begin);
      float* block = out + static_cast<size_t>(begin) * E * s.cin + (o - begin);
      for (int c = 0; c < s.cin; c++) {
        double element[E];
        transform_weights(w + static_cast<size_t>(o) * 9 * s.cin + c, s.cin, element);
        for (int e = 0; e < E; e++) block[(static_cast<size_t>(e) * s.cin + c) * width] = static_cast<float>(element[e]);
      }
    }
  }

  RW_INLINE void forward(V* d) {  // Bt d
    if constexpr (M == 2) {
      const V t0 = d[2] - d[0], t1 = d[1] + d[2], t2 = d[2] - d[1], t3 = d[3] - d[1];
      d[0] = t0, d[1] = t1, d[2] = t2, d[3] = t3;
    } else {
      const V even = fused(set(-4.0f), d[2], d[4]), odd = fused(set(-4.0f), d[1], d[3]);
      const V near = d[4] - d[2], far = d[3] - d[1];
      const V t0 = fused(set(4.0f), d[0], fused(set(-5.0f), d[2], d[4])), t5 = fused(set(4.0f), d[1], fused(set(-5.0f), d[3], d[5]));
      d[0] = t0, d[1] = even + odd, d[2] = even - odd;
      d[3] = fused(set(2.0f), far, near), d[4] = fused(set(-2.0f), far, near), d[5] = t5;
    }
  }

  RW_INLINE void backward(const V* m, V* y) {  // At m
    const V plus = m[1] + m[2], minus = m[1] - m[2];
    if constexpr (M == 2) {
      y[0] = m[0] + plus, y[1] = minus + m[3];
    } else {
      const V plus2 = m[3] + m[4], minus2 = m[3] - m[4];
      y[0] = m[0] + (plus + plus2);
      y[1] = fused(set(2.0f), minus2, minus);
      y[2] = fused(set(4.0f), plus2, plus);
      y[3] = fused(set(8.0f), minus2, minus) + m[5];
    }
  }

  // Bt d B of one tile, W channels at a time. rows and columns: how many pixels of the tile exist, the others are zero.
  template <bool Whole>
  static __attribute__((noinline)) void take(const uint8_t* x, int64_t x_row, int64_t x_pixel, int rows, int columns, int cin, float* v,
                                             int64_t v_step) {
    for (int c = 0; c < cin; c += W) {
      const int n = smaller(W, cin - c);
      V d[E];  // transposed: d[j*A + i] is row i of column j
#pragma GCC unroll 8
      for (int j = 0; j < A; j++) {
#pragma GCC unroll 8
        for (int i = 0; i < A; i++) {
          const float* p = reinterpret_cast<const float*>(x + i * x_row + j * x_pixel) + c;
          if (Whole) d[j * A + i] = load(p);
          else d[j * A + i] = i < rows && j < columns ? load(p, n) : set(0.0f);
        }
        forward(d + j * A);
      }
#pragma GCC unroll 8
      for (int i = 0; i < A; i++) {
        V row[A];
#pragma GCC unroll 8
        for (int j = 0; j < A; j++) row[j] = d[j * A + i];
        forward(row);
#pragma GCC unroll 8
        for (int j = 0; j < A; j++) store(v + (i * A + j) * v_step + c, row[j]);
      }
    }
  }

  template <int P, int NV> static __attribute__((noinline)) void product(const float* v, int64_t row, int k, const float* w, float* m) {
    const int32_t tap = 0;
    V acc[P * NV];
    Tile<P, NV>::run(acc, reinterpret_cast<const uint8_t*>(v), row * static_cast<int64_t>(sizeof(float)), &tap, 1, k, w, kZeros);
    put(acc, m, typename UpTo<P * NV>::type{});
  }
  template <int... I> RW_INLINE void put(const V* acc, float* m, Indices<I...>) { ((store(m + I * W, acc[I])), ...); }

  using Product = void (*)(const float*, int64_t, int, const float*, float*);
  template <int NV, int... I> static Product pick(int pixels, Indices<I...>) {
    static constexpr Product table[] = {product<I + 1, NV>...};
    return table[pixels - 1];
  }

  // At m A + bias, the activation, and the pixels of the tile that exist. NV vectors of outputs, of which n floats exist.
  template <int NV>
  static __attribute__((noinline)) void give(const float* m, int64_t m_step, const float* bias, const Finish& f, uint8_t* y, int64_t y_row,
                                             int64_t y_pixel, int rows, int columns, int n) {
    alignas(64) float out[M * M * NV * W];
    const V lo = set(f.lo), hi = set(f.hi);
    for (int part = 0; part < NV; part++) {
      V r[M * A];
      const V b = load(bias + part * W);
#pragma GCC unroll 8
      for (int j = 0; j < A; j++) {
        V column[A], short_column[M];
#pragma GCC unroll 8
        for (int i = 0; i < A; i++) column[i] = load(m + (i * A + j) * m_step + part * W);
        backward(column, short_column);
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) r[i * A + j] = short_column[i];
      }
#pragma GCC unroll 8
      for (int i = 0; i < M; i++) {
        V row[M];
        backward(r + i * A, row);
#pragma GCC unroll 8
        for (int j = 0; j < M; j++) store(out + ((i * M + j) * NV + part) * W, least(hi, greatest(lo, row[j] + b)));
      }
    }
    if (!f.clamps) apply_unary(out, out, M * M * NV * W, f.function, f.a, f.b);
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < columns; j++) {
        float* p = reinterpret_cast<float*>(y + i * y_row + j * y_pixel);
        const float* from = out + (i * M + j) * NV * W;
        if (n == NV * W)
          for (int v = 0; v < NV; v++) store(p + v * W, load(from + v * W));
        else
          for (int v = 0; v < NV; v++) store(p + v * W, load(from + v * W), smaller(W, n - v * W));
      }
  }

  static void run(const WinogradShape& s, const WinogradRun& run, int64_t tile_begin, int64_t tile_end) {
    const Plan p = plan(s);
    const uint8_t* packed = static_cast<const uint8_t*>(run.packed);
    const Finish& finish = *reinterpret_cast<const Finish*>(packed);
    const float* bias = reinterpret_cast<const float*>(packed + kWinogradHeader);
    const int n = up_to_vector(s.cout);
    float* v = static_cast<float*>(run.scratch);
    float* m = v + E * p.v_step;
    const int across = (s.out_w + M - 1) / M;
    for (int64_t begin = tile_begin; begin < tile_end; begin += p.tiles) {
      const int tiles = static_cast<int>(tile_end - begin < p.tiles ? tile_end - begin : p.tiles);
      for (int t = 0; t < tiles; t++) {
        const int row = static_cast<int>((begin + t) / across) * M, column = static_cast<int>((begin + t) % across) * M;
        const uint8_t* x = reinterpret_cast<const uint8_t*>(run.x) + row * run.x_row + column * run.x_pixel;
        const int rows = smaller(A, s.out_h + 2 - row), columns = smaller(A, s.out_w + 2 - column);
        const bool whole = rows == A && columns == A && s.cin % W == 0;
        (whole ? take<true> : take<false>)(x, run.x_row, run.x_pixel, rows, columns, s.cin, v + t * p.row, p.v_step);
      }
      const int groups = (tiles + kMaxPixels - 1) / kMaxPixels;
      for (int c = 0; c < n; c += kBlock) {
        const bool wide = n - c > W;
        const int width = wide ? kBlock : W;
        const float* w = bias + n + static_cast<size_t>(c) * E * s.cin;
        for (int e = 0; e < E; e++, w += static_cast<size_t>(s.cin) * width)
          for (int g = 0; g < groups; g++) {
            const int from = tiles * g / groups, count = tiles * (g + 1) / groups - from;
            const Product f = wide ? pick<2>(count, typename UpTo<kMaxPixels>::type{}) : pick<1>(count, typename UpTo<kMaxPixels>::type{});
            f(v + e * p.v_step + from * p.row, p.row, s.cin, w, m + e * p.m_step + static_cast<int64_t>(from) * width);
          }
        for (int t = 0; t < tiles; t++) {
          const int row = static_cast<int>((begin + t) / across) * M, column = static_cast<int>((begin + t) % across) * M;
          uint8_t* y = reinterpret_cast<uint8_t*>(run.y) + row * run.y_row + column * run.y_pixel + c * static_cast<int64_t>(sizeof(float));
          const int rows = smaller(M, s.out_h - row), columns = smaller(M, s.out_w - column), exist = smaller(width, s.cout - c);
          (wide ? give<2> : give<1>)(m + static_cast<int64_t>(t) * width, p.m_step, bias + c, finish, y, run.y_row, run.y_pixel, rows, columns, exist);
        }
      }
    }
  }
};

}  // namespace
}  // namespace rw
