// Depthwise convolution on codes with vpdpbusd.
//
// Taps are taken four at a time: the bytes of four input rows (or taps) are interleaved, so that each dword holds the four
// taps of one channel, and one vpdpbusd multiplies and sums them. A 3x3 kernel with stride 1 computes two output rows at
// once: its four input rows are interleaved once, and meet the weights [w0 w1 w2 0] for the upper and [0 w0 w1 w2] for the
// lower output. Interleaved columns are kept while the window slides on.
//
// Vectors of 64 bytes are 64 channels of one pixel; or, where the pixels of both images lie side by side and the stride is 1, a row
// is taken as flat bytes. Then byte i belongs to channel i % c, and constants repeat after `period` vectors.
#include "depthwise_finish_avx512vnni.h"

namespace rw {
namespace {

constexpr int max_taps = 1024;  // of a kernel on this path: their offsets lie on the stack

bool square3(const DepthwiseShape& s) { return s.kh == 3 && s.kw == 3; }
bool pairs_rows(const DepthwiseShape& s) { return square3(s) && s.sh == 1 && s.sw == 1 && s.dh == 1 && s.dw == 1; }
bool unit5(const DepthwiseShape& s) { return s.kh == 5 && s.kw == 5 && s.sh == 1 && s.sw == 1 && s.dh == 1 && s.dw == 1; }
bool too_many_taps(const DepthwiseShape& s) { return static_cast<int64_t>(s.kh) * s.kw > max_taps; }

// A group is four taps. 3x3: group g is column g, its fourth tap empty. 5x5: group g < 5 is column g without its last row, group
// 5 the last row without its last tap, group 6 that tap. Otherwise taps in their order.
bool square5(const DepthwiseShape& s) { return s.kh == 5 && s.kw == 5; }
int groups_of(const DepthwiseShape& s) { return square3(s) ? 3 : (s.kh * s.kw + 3) / 4; }
int tap_of(const DepthwiseShape& s, int group, int slot) {
  if (square3(s)) return slot < 3 ? slot * 3 + group : -1;
  if (square5(s) && group < 5) return slot * 5 + group;
  const int tap = group * 4 + slot;
  return tap < s.kh * s.kw ? tap : -1;
}

// Vectors after which the constants of a flat row repeat: lcm(c, 64) / 64.
int period_of(int c) {
  int twos = c & -c;
  if (twos > 64) twos = 64;
  return c / twos;
}

// Flat rows waste no lanes, but every column is interleaved anew: worth it where channels fill less than 4/5 of their vectors.
bool flat_pays(int c) { return c * 5 < (c + 63) / 64 * 64 * 4 && period_of(c) <= 11; }
int blocks_of(int c) { return flat_pays(c) ? period_of(c) : (c + 63) / 64; }
int channel_of(int c, int block, int lane) {
  const int i = block * 64 + lane;
  return flat_pays(c) ? i % c : i < c ? i : -1;
}

size_t weight_bytes(const DepthwiseShape& s) { return static_cast<size_t>(groups_of(s)) * (pairs_rows(s) ? 512 : 256); }
size_t block_bytes(const DepthwiseShape& s) { return sizeof(Constants) + weight_bytes(s); }

size_t packed_bytes(const DepthwiseShape& s) {
  if (too_many_taps(s)) return depthwise_u8_portable.packed_bytes(s);
  return sizeof(Head) + blocks_of(s.c) * block_bytes(s);
}

void pack_block(const DepthwiseShape& s, const ConvWeights& w, int block, uint8_t* at) {
  Constants& k = *reinterpret_cast<Constants*>(at);
  std::memset(at, 0, block_bytes(s));
  int8_t* packed = reinterpret_cast<int8_t*>(at + sizeof(Constants));
  const int8_t* canonical = static_cast<const int8_t*>(w.w);
  const int groups = groups_of(s), lift = w.e.kind == EpilogueKind::fine ? kFineLift : 0;
  for (int lane = 0; lane < 64; ++lane) {
    const int c = channel_of(s.c, block, lane);
    if (c < 0) continue;
    const int j = lane % 16 / 4, i = lane / 16 * 4 + lane % 4;  // accumulator and its dword
    k.bias[j][i] = w.e.bias[c];
    if (w.e.scale) k.scale[j][i] = w.e.scale[c];
    if (w.e.kind == EpilogueKind::poly) k.out_scale[j][i] = w.e.out_scale[c];
    if (w.e.kind != EpilogueKind::real) k.zero[lane % 16 / 8][lane / 16 * 8 + lane % 8] = static_cast<int16_t>(w.e.zero[c] + lift);
    for (int g = 0; g < groups; ++g)
      for (int slot = 0; slot < 4; ++slot) {
        const int tap = tap_of(s, g, slot);
        if (tap < 0) continue;
        const int8_t v = canonical[static_cast<int64_t>(tap) * s.c + c];
        packed[g * 256 + j * 64 + i * 4 + slot] = v;
        if (pairs_rows(s)) packed[(groups + g) * 256 + j * 64 + i * 4 + slot + 1] = v;
      }
  }
}

void pack(const DepthwiseShape& s, const ConvWeights& w, void* packed) {
  if (too_many_taps(s)) return depthwise_u8_portable.pack(s, w, packed);
  fill_head(w.e, packed);
  uint8_t* at = static_cast<uint8_t*>(packed) + sizeof(Head);
  for (int b = 0; b < blocks_of(s.c); ++b) pack_block(s, w, b, at + b * block_bytes(s));
}

// A row (or a pair of rows) of outputs, one vector of 64 channels each, that share their constants.
struct Line {
  const uint8_t* x;
  int64_t x_row, tap, x_step;  // bytes from one input row, one column of taps, one output to the next
  uint8_t* y;
  int64_t y_row, y_step;
  int n;
  __mmask64 mask, last;  // which lanes to write; of the last output
  const Constants* k;
  const __m512i* w;  // [groups][4], for pairs [2][groups][4]
  const int64_t* offset;  // [groups][4], of the taps
  int groups;
};

RW_INLINE __m512i load(const uint8_t* p) { return _mm512_loadu_si512(p); }

RW_INLINE Acc interleave(__m512i r0, __m512i r1, __m512i r2, __m512i r3) {
  const __m512i l = _mm512_unpacklo_epi8(r0, r1), h = _mm512_unpackhi_epi8(r0, r1);
  const __m512i l2 = _mm512_unpacklo_epi8(r2, r3), h2 = _mm512_unpackhi_epi8(r2, r3);
  return {_mm512_unpacklo_epi16(l, l2), _mm512_unpackhi_epi16(l, l2), _mm512_unpacklo_epi16(h, h2), _mm512_unpackhi_epi16(h, h2)};
}

RW_INLINE Acc bias(const Constants& k) {
  return {_mm512_load_si512(k.bias[0]), _mm512_load_si512(k.bias[1]), _mm512_load_si512(k.bias[2]), _mm512_load_si512(k.bias[3])};
}

RW_INLINE void multiply(Acc& a, const Acc& x, const __m512i* w) {
  a.a0 = _mm512_dpbusd_epi32(a.a0, x.a0, w[0]);
  a.a1 = _mm512_dpbusd_epi32(a.a1, x.a1, w[1]);
  a.a2 = _mm512_dpbusd_epi32(a.a2, x.a2, w[2]);
  a.a3 = _mm512_dpbusd_epi32(a.a3, x.a3, w[3]);
}

// Two accumulators share the loads of the weights, of which there are more than the CPU can deliver for one.
RW_INLINE void multiply(Acc& a, const Acc& x, Acc& b, const Acc& y, const __m512i* w) {
  const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + 1), w2 = _mm512_load_si512(w + 2), w3 = _mm512_load_si512(w + 3);
  a.a0 = _mm512_dpbusd_epi32(a.a0, x.a0, w0), b.a0 = _mm512_dpbusd_epi32(b.a0, y.a0, w0);
  a.a1 = _mm512_dpbusd_epi32(a.a1, x.a1, w1), b.a1 = _mm512_dpbusd_epi32(b.a1, y.a1, w1);
  a.a2 = _mm512_dpbusd_epi32(a.a2, x.a2, w2), b.a2 = _mm512_dpbusd_epi32(b.a2, y.a2, w2);
  a.a3 = _mm512_dpbusd_epi32(a.a3, x.a3, w3), b.a3 = _mm512_dpbusd_epi32(b.a3, y.a3, w3);
}

// One column of a window: 4 rows for a pair of output rows, 3 for one (the fourth weight is zero, any byte will do).
template <int rows>
RW_INLINE Acc column(const Line& t, const uint8_t* p) {
  const __m512i r2 = load(p + 2 * t.x_row);
  return interleave(load(p), load(p + t.x_row), r2, rows == 2 ? load(p + 3 * t.x_row) : r2);
}

template <int rows, class F>
RW_INLINE void window(const Line& t, const F& finish, uint8_t* y, __mmask64 mask, const Acc& left, const Acc& middle, const Acc& right) {
  Acc a = bias(*t.k), b = a;
  multiply(a, left, t.w), multiply(a, middle, t.w + 4), multiply(a, right, t.w + 8);
  if (rows == 1) return finish(a, *t.k, y, mask);
  multiply(b, left, t.w + 12), multiply(b, middle, t.w + 16), multiply(b, right, t.w + 20);
  finish_two(finish, *t.k, a, y, mask, b, y + t.y_row, mask);
}

// Windows (x0, x1, x2) and (y0, y1, y2), whose results go to y and y + y_step, both whole.
template <int rows, class F>
RW_INLINE void windows(const Line& t, const F& finish, uint8_t* y, __mmask64 mask, const Acc& x0, const Acc& x1, const Acc& x2, const Acc& y0,
                       const Acc& y1, const Acc& y2) {
  for (int r = 0; r < rows; ++r) {
    Acc a = bias(*t.k), b = a;
    const __m512i* w = t.w + r * 12;
    multiply(a, x0, b, y0, w), multiply(a, x1, b, y1, w + 4), multiply(a, x2, b, y2, w + 8);
    finish_two(finish, *t.k, a, y + r * t.y_row, mask, b, y + r * t.y_row + t.y_step, mask);
  }
}

// The loops below copy the line and the epilogue: stores of bytes may alias what a reference names, and everything would be
// loaded again for each output.

// 3x3, stride 1, 64 channels of one pixel: each column is interleaved once and serves three outputs.
template <int rows, class F>
__attribute__((noinline)) void slide(const Line& line, const F& epilogue) {
  const Line t = line;
  const F finish = epilogue;
  const uint8_t* p = t.x;
  uint8_t* y = t.y;
  Acc c0 = column<rows>(t, p), c1 = column<rows>(t, p + t.tap);
  p += 2 * t.tap;
  for (int i = t.n; i >= 2; i -= 2, p += 2 * t.tap, y += 2 * t.y_step) {
    const Acc c2 = column<rows>(t, p), c3 = column<rows>(t, p + t.tap);
    windows<rows>(t, finish, y, t.mask, c0, c1, c2, c1, c2, c3);
    c0 = c2, c1 = c3;
  }
  if (t.n % 2) window<rows>(t, finish, y, t.mask, c0, c1, column<rows>(t, p));
}

// 3x3, stride 1, any step between outputs.
template <int rows, class F>
__attribute__((noinline)) void reload(const Line& line, const F& epilogue, int begin) {
  const Line t = line;
  const F finish = epilogue;
  for (int i = begin; i < t.n; ++i) {
    const uint8_t* p = t.x + i * t.x_step;
    window<rows>(t, finish, t.y + i * t.y_step, i + 1 == t.n ? t.last : t.mask, column<rows>(t, p), column<rows>(t, p + t.tap),
                 column<rows>(t, p + 2 * t.tap));
  }
}

// The vector that begins `dwords` behind `a`, in the two vectors a and b one after another.
template <int dwords>
RW_INLINE Acc shifted(const Acc& a, const Acc& b) {
  return {_mm512_alignr_epi32(b.a0, a.a0, dwords), _mm512_alignr_epi32(b.a1, a.a1, dwords), _mm512_alignr_epi32(b.a2, a.a2, dwords),
          _mm512_alignr_epi32(b.a3, a.a3, dwords)};
}

// 3x3, stride 1, flat rows of 16 or 32 channels, whose pixels are whole lanes: the columns further right are lanes of this
// vector and the next, shifted after interleaving.
template <int rows, int channels, class F>
__attribute__((noinline)) void shift(const Line& line, const F& epilogue) {
  const Line t = line;
  const F finish = epilogue;
  const int full = t.last == ~__mmask64{0} ? t.n : t.n - 1;  // the next vector would begin too far behind a partial one
  if (full > 0) {
    Acc here = column<rows>(t, t.x);
    for (int i = 0; i < full; ++i) {
      const Acc next = column<rows>(t, t.x + (i + 1) * t.x_step);
      window<rows>(t, finish, t.y + i * t.y_step, ~__mmask64{0}, here, shifted<channels / 4>(here, next),
                   channels == 32 ? next : shifted<8>(here, next));
      here = next;
    }
  }
  reload<rows>(t, finish, full);
}

// 3x3, stride 2: the right column is the left one of the next output.
template <class F>
__attribute__((noinline)) void slide2(const Line& line, const F& epilogue) {
  const Line t = line;
  const F finish = epilogue;
  const uint8_t* p = t.x;
  uint8_t* y = t.y;
  Acc left = column<1>(t, p);
  for (int i = 0; i < t.n; ++i, p += 2 * t.tap, y += t.y_step) {
    const Acc right = column<1>(t, p + 2 * t.tap);
    window<1>(t, finish, y, t.mask, left, column<1>(t, p + t.tap), right);
    left = right;
  }
}

// Pixels of 16 or 32 channels are one or two lanes of 16 bytes: the even (or odd) ones of two vectors.
template <int channels, bool odd>
RW_INLINE __m512i every_other(__m512i a, __m512i b) {
  if (channels == 16) return odd ? _mm512_shuffle_i32x4(a, b, 0xdd) : _mm512_shuffle_i32x4(a, b, 0x88);
  return odd ? _mm512_shuffle_i32x4(a, b, 0xee) : _mm512_shuffle_i32x4(a, b, 0x44);
}
template <int channels, bool odd>
RW_INLINE Acc every_other(const Acc& a, const Acc& b) {
  return {every_other<channels, odd>(a.a0, b.a0), every_other<channels, odd>(a.a1, b.a1), every_other<channels, odd>(a.a2, b.a2),
          every_other<channels, odd>(a.a3, b.a3)};
}

// 3x3, stride 2, 16 or 32 channels, t.n whole vectors of outputs. Rows are interleaved as they lie; the left column is the even
// pixels, the middle one the odd pixels, the right one the even pixels from the second on.
template <int channels, class F>
__attribute__((noinline)) void slide2_lanes(const Line& line, const F& epilogue) {
  const Line t = line;
  const F finish = epilogue;
  const uint8_t* p = t.x;
  uint8_t* y = t.y;
  if (t.n == 0) return;
  Acc a = column<1>(t, p), b = column<1>(t, p + 64);
  Acc left = every_other<channels, false>(a, b);
  for (int i = t.n; i > 0; --i, y += t.y_step) {
    p += 128;
    const Acc middle = every_other<channels, true>(a, b);
    a = column<1>(t, p);
    b = i > 1 ? column<1>(t, p + 64) : a;  // the last right column needs the first pixel of `a` only
    const Acc next = every_other<channels, false>(a, b);
    window<1>(t, finish, y, ~__mmask64{0}, left, middle, shifted<channels / 4>(left, next));
    left = next;
  }
}

RW_INLINE Acc group(const uint8_t* p, const int64_t* at) { return interleave(load(p + at[0]), load(p + at[1]), load(p + at[2]), load(p + at[3])); }

// Any kernel, stride and dilation; two outputs share the loads of weights and offsets.
template <class F>
__attribute__((noinline)) void general(const Line& line, const F& epilogue) {
  const Line t = line;
  const F finish = epilogue;
  const uint8_t* p = t.x;
  uint8_t* y = t.y;
  int i = t.n;
  for (; i >= 2; i -= 2, p += 2 * t.x_step, y += 2 * t.y_step) {
    Acc a = bias(*t.k), b = a;
    for (int g = 0; g < t.groups; ++g) multiply(a, group(p, t.offset + g * 4), b, group(p + t.x_step, t.offset + g * 4), t.w + g * 4);
    finish_two(finish, *t.k, a, y, t.mask, b, y + t.y_step, i == 2 ? t.last : t.mask);
  }
  if (i == 0) return;
  Acc a = bias(*t.k);
  for (int g = 0; g < t.groups; ++g) multiply(a, group(p, t.offset + g * 4), t.w + g * 4);
  finish(a, *t.k, y, t.last);
}

// The column j of four neighbouring 5x5 windows, of which window i has it as column j - i.
template <int j>
RW_INLINE void five_columns(const Line& t, const uint8_t* p, Acc& a, Acc& b, Acc& c, Acc& d) {
  const uint8_t* x = p + j * t.tap;
  const Acc q = interleave(load(x), load(x + t.x_row), load(x + 2 * t.x_row), load(x + 3 * t.x_row));
  if (j < 5) multiply(a, q, t.w + j * 4);
  if (j >= 1 && j < 6) multiply(b, q, t.w + (j - 1) * 4);
  if (j >= 2 && j < 7) multiply(c, q, t.w + (j - 2) * 4);
  if (j >= 3) multiply(d, q, t.w + (j - 3) * 4);
}

// The last row of a 5x5 window.
RW_INLINE void fifth_row(const Line& t, const uint8_t* p, Acc& a) {
  multiply(a, interleave(load(p), load(p + t.tap), load(p + 2 * t.tap), load(p + 3 * t.tap)), t.w + 20);
  const __m512i last = load(p + 4 * t.tap), none = _mm512_setzero_si512();
  multiply(a, interleave(last, none, none, none), t.w + 24);
}

// 5x5, stride 1, 64 channels of one pixel: four windows share the interleaved columns.
template <class F>
__attribute__((noinline)) void five(const Line& line, const F& epilogue) {
  Line t = line;
  const F finish = epilogue;
  while (t.n >= 4) {
    const uint8_t* p = t.x;
    Acc a = bias(*t.k), b = a, c = a, d = a;
    five_columns<0>(t, p, a, b, c, d), five_columns<1>(t, p, a, b, c, d), five_columns<2>(t, p, a, b, c, d), five_columns<3>(t, p, a, b, c, d);
    five_columns<4>(t, p, a, b, c, d), five_columns<5>(t, p, a, b, c, d), five_columns<6>(t, p, a, b, c, d), five_columns<7>(t, p, a, b, c, d);
    p += 4 * t.x_row;
    fifth_row(t, p, a), fifth_row(t, p + t.tap, b), fifth_row(t, p + 2 * t.tap, c), fifth_row(t, p + 3 * t.tap, d);
    finish_two(finish, *t.k, a, t.y, t.mask, b, t.y + t.y_step, t.mask);
    finish_two(finish, *t.k, c, t.y + 2 * t.y_step, t.mask, d, t.y + 3 * t.y_step, t.mask);
    t.n -= 4, t.x += 4 * t.tap, t.y += 4 * t.y_step;
  }
  general(t, finish);
}

__mmask64 lanes(int64_t n) { return n >= 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1; }

// The rows as flat bytes: one line per phase of the constants.
template <int rows, class F>
void flat_rows(const DepthwiseShape& s, const Line& base, const F& finish, int out_w) {
  const int64_t bytes = static_cast<int64_t>(out_w) * s.c, vectors = (bytes + 63) / 64;
  const int period = period_of(s.c);
  for (int phase = 0; phase < period && phase < vectors; ++phase) {
    Line t = base;
    t.x += phase * 64, t.y += phase * 64 * F::out_bytes;
    t.x_step = period * 64, t.y_step = period * 64 * F::out_bytes;
    t.n = static_cast<int>((vectors - phase + period - 1) / period);
    t.mask = ~__mmask64{0};
    t.last = lanes(bytes - (phase + static_cast<int64_t>(t.n - 1) * period) * 64);
    t.k = reinterpret_cast<const Constants*>(reinterpret_cast<const uint8_t*>(base.k) + phase * block_bytes(s));
    t.w = reinterpret_cast<const __m512i*>(t.k + 1);
    if (!pairs_rows(s))
      general(t, finish);
    else if (s.c == 16)
      shift<rows, 16>(t, finish);
    else if (s.c == 32)
      shift<rows, 32>(t, finish);
    else
      reload<rows>(t, finish, 0);
  }
}

// Blocks of 64 channels, pixel by pixel.
template <int rows, class F>
void channel_blocks(const DepthwiseShape& s, const Line& base, const F& finish, int first, int out_w) {
  for (int block = 0; block * 64 < s.c; ++block) {
    Line t = base;
    t.x += first * t.x_step + block * 64, t.y += first * t.y_step + block * 64 * F::out_bytes;
    t.n = out_w - first;
    t.mask = t.last = lanes(s.c - block * 64);
    t.k = reinterpret_cast<const Constants*>(reinterpret_cast<const uint8_t*>(base.k) + block * block_bytes(s));
    t.w = reinterpret_cast<const __m512i*>(t.k + 1);
    if (pairs_rows(s))
      slide<rows>(t, finish);
    else if (square3(s) && s.sw == 2 && s.dw == 1)
      slide2(t, finish);
    else if (unit5(s))
      five(t, finish);
    else
      general(t, finish);
  }
}

template <int rows, class F>
void row(const DepthwiseShape& s, const DepthwiseRun& r, const Line& base, const F& finish) {
  const bool dense = r.x_pixel == s.c && r.y_pixel == s.c * F::out_bytes;
  // Columns shared by 5x5 windows save more than half-empty vectors cost.
  const bool blocks_pay = unit5(s) && s.c * 5 >= (s.c + 63) / 64 * 64 * 3;
  if (dense && s.sw == 1 && flat_pays(s.c) && !blocks_pay) return flat_rows<rows>(s, base, finish, r.out_w);
  int first = 0;
  if (dense && square3(s) && s.sw == 2 && s.dw == 1 && (s.c == 16 || s.c == 32)) {
    Line t = base;
    const int pixels = 64 / s.c;
    t.n = r.out_w / pixels;
    t.y_step = 64 * F::out_bytes;
    if (s.c == 16)
      slide2_lanes<16>(t, finish);
    else
      slide2_lanes<32>(t, finish);
    first = t.n * pixels;
  }
  if (first < r.out_w) channel_blocks<rows>(s, base, finish, first, r.out_w);
}

template <EpilogueKind kind>
void run_kind(const DepthwiseShape& s, const DepthwiseRun& r, const int64_t* offset, int begin, int end) {
  const Finish<kind> finish(*static_cast<const Head*>(r.packed));
  Line t;
  t.x_row = s.dh * r.x_row, t.tap = s.dw * r.x_pixel, t.x_step = s.sw * r.x_pixel;
  t.y_row = r.y_row, t.y_step = r.y_pixel;
  t.k = reinterpret_cast<const Constants*>(static_cast<const uint8_t*>(r.packed) + sizeof(Head));
  t.w = reinterpret_cast<const __m512i*>(t.k + 1);
  t.offset = offset, t.groups = groups_of(s);
  t.n = 0, t.mask = t.last = 0;
  for (int i = begin; i < end;) {
    t.x = r.x + i * s.sh * r.x_row;
    t.y = static_cast<uint8_t*>(r.y) + i * r.y_row;
    if (pairs_rows(s) && i + 2 <= end) {
      row<2>(s, r, t, finish);
      i += 2;
    } else {
      row<1>(s, r, t, finish);
      i += 1;
    }
  }
}

void run(const DepthwiseShape& s, const DepthwiseRun& r, int begin, int end) {
  if (too_many_taps(s)) return depthwise_u8_portable.run(s, r, begin, end);
  int64_t offset[max_taps + 4];
  for (int g = 0; g < groups_of(s); ++g)
    for (int slot = 0; slot < 4; ++slot) {
      const int tap = tap_of(s, g, slot);
      offset[g * 4 + slot] = tap < 0 ? 0 : tap / s.kw * s.dh * r.x_row + tap % s.kw * s.dw * r.x_pixel;
    }
  switch (static_cast<const Head*>(r.packed)->kind) {
    case EpilogueKind::linear: return run_kind<EpilogueKind::linear>(s, r, offset, begin, end);
    case EpilogueKind::table: return run_kind<EpilogueKind::table>(s, r, offset, begin, end);
    case EpilogueKind::poly: return run_kind<EpilogueKind::poly>(s, r, offset, begin, end);
    case EpilogueKind::fine: return run_kind<EpilogueKind::fine>(s, r, offset, begin, end);
    case EpilogueKind::real: break;
  }
  run_kind<EpilogueKind::real>(s, r, offset, begin, end);
  apply_unary(kernels(Isa::avx512vnni).unary_f32, s, r, begin, end);
}

}  // namespace

const DepthwiseKernel depthwise_u8_avx512vnni = {packed_bytes, pack, run};

}  // namespace rw
