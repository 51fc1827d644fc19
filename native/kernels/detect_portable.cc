// Detection kernels in plain C++: suppression, scanning, pixels to codes, resizing. The other paths equal them.
#include "detect_exact.h"

#include <cstring>

namespace rw {
namespace {

int64_t suppress(const BoxArrays& s, const int32_t* boxes, int count, double threshold, uint16_t* alive, int64_t begin, int64_t end) {
  int64_t cleared = 0;
  for (int64_t group = begin; group < end; ++group) {
    const unsigned before = alive[group];
    unsigned live = before;
    for (int k = 0; k < count && live; ++k) {
      const int64_t box = boxes[k];
      const float x1 = s.x1[box], y1 = s.y1[box], x2 = s.x2[box], y2 = s.y2[box], bound = s.bound[box];
      unsigned above = 0, ask = 0;
      for (int lane = 0; lane < 16; ++lane) {
        const int64_t j = group * 16 + lane;
        if (s.label && s.label[j] != s.label[box]) continue;
        const float w = (x2 < s.x2[j] ? x2 : s.x2[j]) - (x1 > s.x1[j] ? x1 : s.x1[j]);
        const float h = (y2 < s.y2[j] ? y2 : s.y2[j]) - (y1 > s.y1[j] ? y1 : s.y1[j]);
        const float shared = (w > 0 ? w : 0) * h, sum = bound + s.bound[j];
        if (s.tame && !(shared > sum)) continue;
        if (s.tame && shared > sum * kCertain) above |= 1u << lane;
        else ask |= 1u << lane;
      }
      live &= ~(above | exact_bits(s, box, group, ask & live, threshold));
    }
    alive[group] = static_cast<uint16_t>(live);
    cleared += __builtin_popcount(before ^ live);
  }
  return cleared;
}

int64_t scan(const float* x, int64_t n, float threshold, int32_t* index) {
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    index[found] = static_cast<int32_t>(i);
    found += !(x[i] < threshold);
  }
  return found;
}

void codes(const uint8_t* x, int64_t pixels, const uint8_t* table, uint8_t* y, int64_t y_pixel) {
  for (int64_t i = 0; i < pixels; ++i, x += 3, y += y_pixel) {
    y[0] = table[x[0]];
    y[1] = table[256 + x[1]];
    y[2] = table[512 + x[2]];
  }
}

// Packed: the byte offset of each left pixel, then the weights.
size_t packed_bytes(const ResizeShape& s) { return static_cast<size_t>(s.out_w) * (sizeof(int32_t) + 2 * sizeof(int16_t)); }

void pack(const ResizeShape& s, const int32_t* column, const int16_t* weight, void* packed) {
  int32_t* offset = static_cast<int32_t*>(packed);
  for (int i = 0; i < s.out_w; ++i) offset[i] = column[i] * 3;
  memcpy(offset + s.out_w, weight, static_cast<size_t>(s.out_w) * 4);
}

void row(const ResizeShape& s, const void* packed, const uint8_t* x, int16_t* y) {
  const int32_t* offset = static_cast<const int32_t*>(packed);
  const int16_t* weight = reinterpret_cast<const int16_t*>(offset + s.out_w);
  const int first = s.swap ? 2 : 0, last = 2 - first, right_end = (s.in_w - 1) * 3;
  for (int i = 0; i < s.out_w; ++i, y += 3) {
    const uint8_t* left = x + offset[i];
    const uint8_t* right = offset[i] < right_end ? left + 3 : left;  // the last pixel has no neighbour, and a weight of 0 for it
    const int a = weight[2 * i], b = weight[2 * i + 1];
    y[first] = static_cast<int16_t>((left[0] * a + right[0] * b) >> 4);
    y[1] = static_cast<int16_t>((left[1] * a + right[1] * b) >> 4);
    y[last] = static_cast<int16_t>((left[2] * a + right[2] * b) >> 4);
  }
}

void blend(const int16_t* a, const int16_t* b, int wa, int wb, uint8_t* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<uint8_t>((((a[i] * wa) >> 16) + ((b[i] * wb) >> 16) + 2) >> 2);
}

}  // namespace

const SuppressFn suppress_portable = suppress;
const ScanFn scan_f32_portable = scan;
const CodesFn codes_u8_portable = codes;
const ResizeKernel resize_u8_portable = {packed_bytes, pack, row, blend};

}  // namespace rw
