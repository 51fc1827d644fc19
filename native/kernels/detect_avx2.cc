// Detection kernels with AVX2; what each computes is in detect_portable.cc.
#include "detect_exact.h"

#include <cstring>
#include <immintrin.h>

namespace rw {
namespace {

struct Mask {
  __m256 maybe, above;
};

inline Mask compare(const BoxArrays& s, int64_t box, int64_t at) {
  const __m256 w = _mm256_sub_ps(_mm256_min_ps(_mm256_broadcast_ss(s.x2 + box), _mm256_loadu_ps(s.x2 + at)),
                                 _mm256_max_ps(_mm256_broadcast_ss(s.x1 + box), _mm256_loadu_ps(s.x1 + at)));
  const __m256 h = _mm256_sub_ps(_mm256_min_ps(_mm256_broadcast_ss(s.y2 + box), _mm256_loadu_ps(s.y2 + at)),
                                 _mm256_max_ps(_mm256_broadcast_ss(s.y1 + box), _mm256_loadu_ps(s.y1 + at)));
  const __m256 shared = _mm256_mul_ps(_mm256_max_ps(w, _mm256_setzero_ps()), h);  // a negative h is below any bound
  const __m256 sum = _mm256_add_ps(_mm256_broadcast_ss(s.bound + box), _mm256_loadu_ps(s.bound + at));
  return {_mm256_cmp_ps(shared, sum, _CMP_GT_OQ), _mm256_cmp_ps(shared, _mm256_mul_ps(sum, _mm256_set1_ps(kCertain)), _CMP_GT_OQ)};
}

inline unsigned bits(__m256 mask) { return static_cast<unsigned>(_mm256_movemask_ps(mask)); }

inline unsigned same_label(const BoxArrays& s, int64_t box, int64_t at) {
  const __m256i label = _mm256_set1_epi32(s.label[box]);
  const __m256i* labels = reinterpret_cast<const __m256i*>(s.label + at);
  return bits(_mm256_castsi256_ps(_mm256_cmpeq_epi32(label, _mm256_loadu_si256(labels)))) |
         bits(_mm256_castsi256_ps(_mm256_cmpeq_epi32(label, _mm256_loadu_si256(labels + 1)))) << 8;
}

int64_t suppress(const BoxArrays& s, const int32_t* boxes, int count, double threshold, uint16_t* alive, int64_t begin, int64_t end) {
  if (!s.tame) return suppress_portable(s, boxes, count, threshold, alive, begin, end);
  int64_t cleared = 0;
  for (int64_t group = begin; group < end; ++group) {
    const unsigned before = alive[group];
    unsigned live = before;
    for (int k = 0; k < count; ++k) {
      const int64_t box = boxes[k];
      const Mask a = compare(s, box, group * 16), b = compare(s, box, group * 16 + 8);
      unsigned maybe = (bits(a.maybe) | bits(b.maybe) << 8) & live;
      if (!maybe) continue;
      if (s.label) maybe &= same_label(s, box, group * 16);
      unsigned above = (bits(a.above) | bits(b.above) << 8) & maybe;
      if (above != maybe) above |= exact_bits(s, box, group, maybe & ~above, threshold);
      live &= ~above;
    }
    alive[group] = static_cast<uint16_t>(live);
    cleared += __builtin_popcount(before ^ live);
  }
  return cleared;
}

int64_t scan(const float* x, int64_t n, float threshold, int32_t* index) {
  const __m256 limit = _mm256_set1_ps(threshold);
  int64_t found = 0, i = 0;
  for (; i + 32 <= n; i += 32) {  // candidates are rare: most steps find none
    unsigned hits = bits(_mm256_cmp_ps(_mm256_loadu_ps(x + i), limit, _CMP_NLT_UQ));
    hits |= bits(_mm256_cmp_ps(_mm256_loadu_ps(x + i + 8), limit, _CMP_NLT_UQ)) << 8;
    hits |= bits(_mm256_cmp_ps(_mm256_loadu_ps(x + i + 16), limit, _CMP_NLT_UQ)) << 16;
    hits |= bits(_mm256_cmp_ps(_mm256_loadu_ps(x + i + 24), limit, _CMP_NLT_UQ)) << 24;
    for (; hits; hits &= hits - 1) index[found++] = static_cast<int32_t>(i) + __builtin_ctz(hits);
  }
  for (; i < n; ++i) {
    index[found] = static_cast<int32_t>(i);
    found += !(x[i] < threshold);
  }
  return found;
}

// Packed: byte offsets of the left pixels; then, for each output pixel, its two weights four times. One load of 8 bytes
// holds both neighbours, so it must end within the row; the last pixels are left to plain code.
size_t packed_bytes(const ResizeShape& s) { return static_cast<size_t>(s.out_w) * (4 + 16); }

void pack(const ResizeShape& s, const int32_t* column, const int16_t* weight, void* packed) {
  int32_t* offset = static_cast<int32_t*>(packed);
  char* weights = static_cast<char*>(packed) + static_cast<size_t>(s.out_w) * 4;
  for (int i = 0; i < s.out_w; ++i) {
    offset[i] = column[i] * 3;
    for (int k = 0; k < 4; ++k) memcpy(weights + i * 16 + k * 4, weight + 2 * i, 4);
  }
}

void row(const ResizeShape& s, const void* packed, const uint8_t* x, int16_t* y) {
  const int32_t* offset = static_cast<const int32_t*>(packed);
  const char* weights = static_cast<const char*>(packed) + static_cast<size_t>(s.out_w) * 4;
  const int end = s.in_w * 3;
  const __m256i pairs = _mm256_broadcastsi128_si256(
      s.swap ? _mm_setr_epi8(2, -1, 5, -1, 1, -1, 4, -1, 0, -1, 3, -1, -1, -1, -1, -1)
             : _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
  int i = 0;
  for (; i + 2 <= s.out_w && offset[i + 1] + 8 <= end; i += 2) {
    __m256i v = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x + offset[i]))),
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x + offset[i + 1])), 1);
    v = _mm256_shuffle_epi8(v, pairs);
    v = _mm256_madd_epi16(v, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + i * 16)));
    v = _mm256_srli_epi32(v, 4);
    v = _mm256_packus_epi32(v, v);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(y + 3 * i), _mm256_castsi256_si128(v));  // the 4th entry is written over next
    _mm_storel_epi64(reinterpret_cast<__m128i*>(y + 3 * i + 3), _mm256_extracti128_si256(v, 1));
  }
  const int first = s.swap ? 2 : 0, last = 2 - first;
  for (; i < s.out_w; ++i) {
    const uint8_t* left = x + offset[i];
    const uint8_t* right = offset[i] < end - 3 ? left + 3 : left;
    int16_t w[2];
    memcpy(w, weights + i * 16, 4);
    y[3 * i + first] = static_cast<int16_t>((left[0] * w[0] + right[0] * w[1]) >> 4);
    y[3 * i + 1] = static_cast<int16_t>((left[1] * w[0] + right[1] * w[1]) >> 4);
    y[3 * i + last] = static_cast<int16_t>((left[2] * w[0] + right[2] * w[1]) >> 4);
  }
}

void blend(const int16_t* a, const int16_t* b, int wa, int wb, uint8_t* y, int64_t n) {
  const __m256i va = _mm256_set1_epi16(static_cast<short>(wa)), vb = _mm256_set1_epi16(static_cast<short>(wb)), two = _mm256_set1_epi16(2);
  auto mix = [&](int64_t at) {
    __m256i v = _mm256_add_epi16(_mm256_mulhi_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + at)), va),
                                 _mm256_mulhi_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + at)), vb));
    return _mm256_srli_epi16(_mm256_add_epi16(v, two), 2);
  };
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    __m256i v = _mm256_permute4x64_epi64(_mm256_packus_epi16(mix(i), mix(i + 16)), 0xd8);  // packs work within halves
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i), v);
  }
  for (; i < n; ++i) y[i] = static_cast<uint8_t>((((a[i] * wa) >> 16) + ((b[i] * wb) >> 16) + 2) >> 2);
}

}  // namespace

const SuppressFn suppress_avx2 = suppress;
const ScanFn scan_f32_avx2 = scan;
const ResizeKernel resize_u8_avx2 = {packed_bytes, pack, row, blend};

}  // namespace rw
