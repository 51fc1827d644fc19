// The box formulas of the detector families; detect/heads.py has them in a table.
#include <algorithm>
#include <cmath>

#include "detect/decode.h"

namespace rw {
namespace {

constexpr float kExpLimit = 12.0f;  // as detect/heads.py: a wild logit gives a huge box, never an infinite one

}  // namespace

float sigmoid(float x) { return std::tanh(x * 0.5f) * 0.5f + 0.5f; }

void softmax(const float* x, int64_t step, int n, float* y) {
  float largest = x[0], sum = 0;
  for (int i = 1; i < n; ++i) largest = std::max(largest, x[i * step]);
  for (int i = 0; i < n; ++i) sum += y[i] = std::exp(x[i * step] - largest);
  for (int i = 0; i < n; ++i) y[i] /= sum;
}

void decode_box(const Heads& heads, const DecodeSpec& spec, const Level& level, const float* const* outputs, int64_t row, float b[4]) {
  const auto v = [&](int channel) { return *level.box.at(outputs, row, channel); };
  const float gx = static_cast<float>(row % level.columns), gy = static_cast<float>(row / level.columns);
  const float in_w = static_cast<float>(spec.input_width), in_h = static_cast<float>(spec.input_height);
  float cx = 0, cy = 0, w = 0, h = 0;
  switch (heads.box) {
    case BoxForm::yolox:
      cx = (v(0) + gx) * level.stride;
      cy = (v(1) + gy) * level.stride;
      w = std::exp(std::min(v(2), kExpLimit)) * level.stride;
      h = std::exp(std::min(v(3), kExpLimit)) * level.stride;
      break;
    case BoxForm::yolov5:
      cx = (sigmoid(v(0)) * 2 - 0.5f + gx) * level.stride;
      cy = (sigmoid(v(1)) * 2 - 0.5f + gy) * level.stride;
      w = sigmoid(v(2)) * 2;
      h = sigmoid(v(3)) * 2;
      w = w * w * level.anchor_w;
      h = h * h * level.anchor_h;
      break;
    case BoxForm::yolov3:
      cx = (sigmoid(v(0)) + gx) * level.stride;
      cy = (sigmoid(v(1)) + gy) * level.stride;
      w = std::exp(std::min(v(2), kExpLimit)) * level.anchor_w;
      h = std::exp(std::min(v(3), kExpLimit)) * level.anchor_h;
      break;
    case BoxForm::fastestdet:
      cx = (std::tanh(v(0)) + gx) / static_cast<float>(level.columns) * in_w;
      cy = (std::tanh(v(1)) + gy) / static_cast<float>(level.grid_rows) * in_h;
      w = sigmoid(v(2)) * in_w;
      h = sigmoid(v(3)) * in_h;
      break;
    case BoxForm::distances: {
      float side[4];
      for (int k = 0; k < 4; ++k) {
        side[k] = v(k);
        if (!spec.reg_max) continue;
        // the expectation of a softmax over the bins
        const int bins = spec.reg_max + 1;
        float largest = v(k * bins), sum = 0, weighted = 0;
        for (int i = 1; i < bins; ++i) largest = std::max(largest, v(k * bins + i));
        for (int i = 0; i < bins; ++i) {
          const float e = std::exp(v(k * bins + i) - largest);
          sum += e;
          weighted += e * static_cast<float>(i);
        }
        side[k] = weighted / sum;
      }
      const float x = gx + heads.cell_offset, y = gy + heads.cell_offset;
      b[0] = (x - side[0]) * level.stride;
      b[1] = (y - side[1]) * level.stride;
      b[2] = (x + side[2]) * level.stride;
      b[3] = (y + side[3]) * level.stride;
      return;
    }
    default: {
      const float sx = spec.normalized ? in_w : 1, sy = spec.normalized ? in_h : 1;
      const bool swap = heads.box == BoxForm::yxyx;
      const float p[4] = {v(swap ? 1 : 0) * sx, v(swap ? 0 : 1) * sy, v(swap ? 3 : 2) * sx, v(swap ? 2 : 3) * sy};
      if (heads.box != BoxForm::cxcywh) {
        std::copy(p, p + 4, b);
        return;
      }
      cx = p[0], cy = p[1], w = p[2], h = p[3];
    }
  }
  b[0] = cx - w * 0.5f;
  b[1] = cy - h * 0.5f;
  b[2] = cx + w * 0.5f;
  b[3] = cy + h * 0.5f;
}

}  // namespace rw
