#include "engine/border.h"

namespace rw {
namespace {

template <class T>
void fill_pixels(uint8_t* pixel, int64_t step, int64_t count, int channels, const uint8_t* fill, bool per_channel) {
  for (int64_t i = 0; i < count; i++, pixel += step) {
    if (per_channel) {
      std::memcpy(pixel, fill, channels * sizeof(T));
      continue;
    }
    T value;
    std::memcpy(&value, fill, sizeof(T));
    if (sizeof(T) == 1) {
      std::memset(pixel, static_cast<int>(fill[0]), channels);
    } else {
      for (int c = 0; c < channels; c++) std::memcpy(pixel + c * sizeof(T), &value, sizeof(T));
    }
  }
}

}  // namespace

void fill_border(const View& view, Bases bases, int64_t begin, int64_t end, bool above, bool below) {
  const Tensor& t = view.t;
  const int64_t row = view.step(0), pixel = view.step(1);
  const int64_t h = t.dims[0], w = t.dims[1];
  const int channels = view.c(), top = t.border[0], left = t.border[1], bottom = t.border[2], right = t.border[3];
  const bool per_channel = static_cast<int64_t>(t.fill.size) == channels * t.element();
  uint8_t* const origin = view.at(bases);
  const auto fill = [&](int64_t y, int64_t x, int64_t count) {
    uint8_t* p = origin + y * row + x * pixel;
    if (t.element() == 1) fill_pixels<uint8_t>(p, pixel, count, channels, t.fill.data, per_channel);
    else fill_pixels<uint32_t>(p, pixel, count, channels, t.fill.data, per_channel);
  };
  if (above)
    for (int64_t y = -top; y < 0; y++) fill(y, -left, left + w + right);
  for (int64_t y = begin; y < end; y++) {
    fill(y, -left, left);
    fill(y, w, right);
  }
  if (below)
    for (int64_t y = h; y < h + bottom; y++) fill(y, -left, left + w + right);
}

}  // namespace rw
