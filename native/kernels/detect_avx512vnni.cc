// Detection kernels with AVX-512 (F, BW, VL, VBMI); what each computes is in detect_portable.cc.
#include "detect_exact.h"

#include <cstring>

// gcc 12 takes the deliberately undefined operands within its own intrinsics for mistakes (bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

namespace rw {
namespace {

int64_t suppress(const BoxArrays& s, const int32_t* boxes, int count, double threshold, uint16_t* alive, int64_t begin, int64_t end) {
  if (!s.tame) return suppress_portable(s, boxes, count, threshold, alive, begin, end);
  const __m512 zero = _mm512_setzero_ps(), raise = _mm512_set1_ps(kCertain);
  int64_t cleared = 0;
  for (int64_t group = begin; group < end; ++group) {
    const unsigned before = alive[group];
    if (!before) continue;
    const int64_t at = group * 16;
    const __m512 x1 = _mm512_loadu_ps(s.x1 + at), y1 = _mm512_loadu_ps(s.y1 + at), x2 = _mm512_loadu_ps(s.x2 + at), y2 = _mm512_loadu_ps(s.y2 + at);
    const __m512 bound = _mm512_loadu_ps(s.bound + at);
    unsigned live = before;
    for (int k = 0; k < count; ++k) {
      const int64_t box = boxes[k];
      const __m512 w = _mm512_sub_ps(_mm512_min_ps(x2, _mm512_set1_ps(s.x2[box])), _mm512_max_ps(x1, _mm512_set1_ps(s.x1[box])));
      const __m512 h = _mm512_sub_ps(_mm512_min_ps(y2, _mm512_set1_ps(s.y2[box])), _mm512_max_ps(y1, _mm512_set1_ps(s.y1[box])));
      const __m512 shared = _mm512_mul_ps(_mm512_max_ps(w, zero), h);  // a negative h is below any bound
      const __m512 sum = _mm512_add_ps(bound, _mm512_set1_ps(s.bound[box]));
      unsigned maybe = _mm512_cmp_ps_mask(shared, sum, _CMP_GT_OQ) & live;
      if (!maybe) continue;
      if (s.label) maybe = _mm512_mask_cmpeq_epi32_mask(static_cast<__mmask16>(maybe), _mm512_set1_epi32(s.label[box]), _mm512_loadu_si512(s.label + at));
      unsigned above = _mm512_mask_cmp_ps_mask(static_cast<__mmask16>(maybe), shared, _mm512_mul_ps(sum, raise), _CMP_GT_OQ);
      if (above != maybe) above |= exact_bits(s, box, group, maybe & ~above, threshold);
      live &= ~above;
    }
    alive[group] = static_cast<uint16_t>(live);
    cleared += __builtin_popcount(before ^ live);
  }
  return cleared;
}

int64_t scan(const float* x, int64_t n, float threshold, int32_t* index) {
  const __m512 limit = _mm512_set1_ps(threshold);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int64_t found = 0, i = 0;
  auto take = [&](__mmask16 hits, int64_t at) {
    // compressed in a register: the form that writes to memory is slow on some CPUs
    _mm512_storeu_si512(index + found, _mm512_maskz_compress_epi32(hits, _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(at)))));
    found += __builtin_popcount(hits);
  };
  for (; i + 64 <= n; i += 64) {  // candidates are rare: most steps find none
    __mmask16 a = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), limit, _CMP_NLT_UQ);
    __mmask16 b = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i + 16), limit, _CMP_NLT_UQ);
    __mmask16 c = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i + 32), limit, _CMP_NLT_UQ);
    __mmask16 d = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i + 48), limit, _CMP_NLT_UQ);
    if (!(a | b | c | d)) continue;
    take(a, i);
    take(b, i + 16);
    take(c, i + 32);
    take(d, i + 48);
  }
  for (; i < n; i += 16) {
    __mmask16 inside = n - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n - i)) - 1);
    take(_mm512_mask_cmp_ps_mask(inside, _mm512_maskz_loadu_ps(inside, x + i), limit, _CMP_NLT_UQ), i);
  }
  return found;
}

struct Table {
  __m512i part[4];
};

inline Table load_table(const uint8_t* table) {
  Table t;
  for (int k = 0; k < 4; ++k) t.part[k] = _mm512_loadu_si512(table + 64 * k);
  return t;
}

inline __m512i look_up(const Table& t, __m512i x) {
  __m512i low = _mm512_permutex2var_epi8(t.part[0], x, t.part[1]), high = _mm512_permutex2var_epi8(t.part[2], x, t.part[3]);
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), low, high);
}

// Every third bit, starting at `first`.
constexpr uint64_t thirds(int first) {
  uint64_t mask = 0;
  for (int i = first; i < 64; i += 3) mask |= uint64_t(1) << i;
  return mask;
}

void codes(const uint8_t* x, int64_t pixels, const uint8_t* table, uint8_t* y, int64_t y_pixel) {
  if (y_pixel != 3) {
    for (int64_t i = 0; i < pixels; ++i)
      for (int c = 0; c < 3; ++c) y[i * y_pixel + c] = table[256 * c + x[3 * i + c]];
    return;
  }
  const int64_t n = pixels * 3;
  const bool one = memcmp(table, table + 256, 256) == 0 && memcmp(table, table + 512, 256) == 0;
  const Table a = load_table(table), b = load_table(table + 256), c = load_table(table + 512);
  for (int64_t i = 0; i < n; i += 63) {  // whole pixels, so that channels keep their places
    const uint64_t inside = n - i >= 63 ? (uint64_t(1) << 63) - 1 : (uint64_t(1) << (n - i)) - 1;
    __m512i v = _mm512_maskz_loadu_epi8(inside, x + i), q = look_up(a, v);
    if (!one) {
      q = _mm512_mask_mov_epi8(q, thirds(1), look_up(b, v));
      q = _mm512_mask_mov_epi8(q, thirds(2), look_up(c, v));
    }
    _mm512_mask_storeu_epi8(y + i, inside, q);
  }
}

// Resizing: a step makes 32 values from one window of the row, by byte permutation: `index` picks the left and right
// neighbour of each value as the bytes of 16-bit pairs, vpmaddwd weighs them. The values of a step are dealt to two vectors
// in fours, because vpackusdw works within 128-bit lanes. How wide the window is depends on the scale:
enum Window : int32_t { narrow = 1, wide = 2, split = 3, none = 0 };  // 64 bytes; 128; 128 for each vector; too far apart

struct Step {
  uint64_t inside[4];         // which bytes of the windows are within the row
  int32_t base[2];            // first byte of the window of each vector
  int32_t pad[6];
  uint8_t index[2][64];
  int16_t weight[2][32];
};
static_assert(sizeof(Step) == 320, "whole cache lines");

struct Head {
  Window window;
  int32_t pad[15];
};

inline int steps(const ResizeShape& s) { return (s.out_w * 3 + 31) / 32; }

size_t packed_bytes(const ResizeShape& s) {
  size_t fast = sizeof(Head) + static_cast<size_t>(steps(s)) * sizeof(Step);
  return fast + resize_u8_avx2.packed_bytes(s);
}

// Which value of a step lane `lane` of vector `half` holds.
inline int value_of(Window window, int half, int lane) { return window == split ? half * 16 + lane : (lane / 4) * 8 + half * 4 + lane % 4; }

Window choose(const ResizeShape& s, const int32_t* column) {
  int one = 0, two = 0;  // widest span of bytes of a step, and of half a step of neighbouring values
  const int n = s.out_w * 3;
  for (int v = 0; v < n; v += 16) {
    auto end = [&](int values) {
      int last = column[(v + values < n ? v + values - 1 : n - 1) / 3];
      return 3 * (last + 1 < s.in_w ? last + 2 : s.in_w);
    };
    int begin = 3 * column[v / 3], half = end(16) - begin, whole = end(32) - begin;
    if (v % 32 == 0 && whole > one) one = whole;
    if (half > two) two = half;
  }
  return one <= 64 ? narrow : one <= 128 ? wide : two <= 128 ? split : none;
}

void pack(const ResizeShape& s, const int32_t* column, const int16_t* weight, void* packed) {
  Head head = {choose(s, column), {}};
  char* at = static_cast<char*>(packed);
  memcpy(at, &head, sizeof head);
  at += sizeof head;
  const int n = s.out_w * 3, row_bytes = s.in_w * 3;
  for (int k = 0; k < steps(s) && head.window != none; ++k, at += sizeof(Step)) {
    Step step;
    memset(&step, 0, sizeof step);
    for (int half = 0; half < 2; ++half) {
      int first = k * 32 + (head.window == split ? half * 16 : 0);
      step.base[half] = 3 * column[(first < n ? first : n - 1) / 3];
      for (int part = 0; part < 2; ++part) {
        int left = row_bytes - step.base[half] - 64 * part;
        step.inside[half * 2 + part] = left >= 64 ? ~uint64_t(0) : left > 0 ? (uint64_t(1) << left) - 1 : 0;
      }
      for (int lane = 0; lane < 16; ++lane) {
        int v = k * 32 + value_of(head.window, half, lane);
        if (v >= n) continue;  // weights 0
        int pixel = v / 3, c = s.swap ? 2 - v % 3 : v % 3, byte = 3 * column[pixel] + c - step.base[half];
        step.index[half][4 * lane] = static_cast<uint8_t>(byte);
        step.index[half][4 * lane + 2] = static_cast<uint8_t>(column[pixel] + 1 < s.in_w ? byte + 3 : byte);
        step.weight[half][2 * lane] = weight[2 * pixel];
        step.weight[half][2 * lane + 1] = weight[2 * pixel + 1];
      }
    }
    memcpy(at, &step, sizeof step);
  }
  if (head.window == none) resize_u8_avx2.pack(s, column, weight, at);
}

constexpr __mmask64 kLowBytes = 0x5555555555555555;

inline __m512i weigh(__m512i pairs, const Step& step, int half) {
  return _mm512_srli_epi32(_mm512_madd_epi16(pairs, _mm512_loadu_si512(step.weight[half])), 4);
}

template <Window window>
void row_by(const Step* step, int count, const uint8_t* x, int16_t* y) {
  for (int k = 0; k < count; ++k, ++step, y += 32) {
    const uint8_t* from = x + step->base[0];
    const __m512i i0 = _mm512_loadu_si512(step->index[0]), i1 = _mm512_loadu_si512(step->index[1]);
    __m512i a = _mm512_maskz_loadu_epi8(step->inside[0], from), first, second;
    if constexpr (window == narrow) {
      first = _mm512_maskz_permutexvar_epi8(kLowBytes, i0, a);
      second = _mm512_maskz_permutexvar_epi8(kLowBytes, i1, a);
    } else {
      __m512i b = _mm512_maskz_loadu_epi8(step->inside[1], from + 64);
      first = _mm512_maskz_permutex2var_epi8(kLowBytes, a, i0, b);
      if constexpr (window == split) {
        from = x + step->base[1];
        a = _mm512_maskz_loadu_epi8(step->inside[2], from);
        b = _mm512_maskz_loadu_epi8(step->inside[3], from + 64);
      }
      second = _mm512_maskz_permutex2var_epi8(kLowBytes, a, i1, b);
    }
    first = weigh(first, *step, 0);
    second = weigh(second, *step, 1);
    if constexpr (window == split) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm512_cvtepi32_epi16(first));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + 16), _mm512_cvtepi32_epi16(second));
    } else {
      _mm512_storeu_si512(y, _mm512_packus_epi32(first, second));
    }
  }
}

void row(const ResizeShape& s, const void* packed, const uint8_t* x, int16_t* y) {
  const Window window = static_cast<const Head*>(packed)->window;
  const Step* step = reinterpret_cast<const Step*>(static_cast<const char*>(packed) + sizeof(Head));
  const int count = steps(s);
  if (window == narrow) return row_by<narrow>(step, count, x, y);
  if (window == wide) return row_by<wide>(step, count, x, y);
  if (window == split) return row_by<split>(step, count, x, y);
  resize_u8_avx2.row(s, step, x, y);
}

void blend(const int16_t* a, const int16_t* b, int wa, int wb, uint8_t* y, int64_t n) {
  const __m512i va = _mm512_set1_epi16(static_cast<short>(wa)), vb = _mm512_set1_epi16(static_cast<short>(wb)), two = _mm512_set1_epi16(2);
  for (int64_t i = 0; i < n; i += 32) {
    const __mmask32 inside = n - i >= 32 ? ~uint32_t(0) : (uint32_t(1) << (n - i)) - 1;
    __m512i v = _mm512_add_epi16(_mm512_mulhi_epi16(_mm512_maskz_loadu_epi16(inside, a + i), va),
                                 _mm512_mulhi_epi16(_mm512_maskz_loadu_epi16(inside, b + i), vb));
    v = _mm512_srli_epi16(_mm512_add_epi16(v, two), 2);
    _mm256_mask_storeu_epi8(y + i, inside, _mm512_cvtepi16_epi8(v));
  }
}

}  // namespace

const SuppressFn suppress_avx512vnni = suppress;
const ScanFn scan_f32_avx512vnni = scan;
const CodesFn codes_u8_avx512vnni = codes;
const ResizeKernel resize_u8_avx512vnni = {packed_bytes, pack, row, blend};

}  // namespace rw
