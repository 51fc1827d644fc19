// From the outputs of a detector to its detections: decode, suppress, move to image pixels. detect() of detect/decode.py.
#pragma once
#include <algorithm>
#include <vector>

#include "detect/decode.h"
#include "detect/letterbox.h"
#include "detect/nms.h"

namespace rw {

struct Detection {
  float x1, y1, x2, y2;  // pixels, x to the right and y down
  float score;           // 0..1
  int32_t label;         // class, from 0
};

struct Limits {
  float score_threshold;
  double iou_threshold;
  int64_t max_detections;  // -1: all
};

inline Limits limits_of(const DecodeSpec& spec) { return {static_cast<float>(spec.score_threshold), spec.iou_threshold, spec.max_detections}; }

class Finish {
 public:
  Finish(const DecodeSpec& spec, const std::vector<OutputPort>& ports, const Kernels& kernels) : decoder_(spec, ports, kernels), nms_(kernels) {
    nms_.reserve(kCandidates);
    found_.reserve(kCandidates);
  }

  // Best first; in image pixels where a geometry is given, else in input pixels. Valid until the next call.
  const std::vector<Detection>& run(const float* const* outputs, const Limits& limits, const Geometry* geometry) {
    const Candidates& c = decoder_.run(outputs, limits.score_threshold);
    const NmsOptions options = {limits.iou_threshold, NmsOptions().score_threshold, limits.max_detections};
    const auto& kept = nms_.run(c.boxes.data(), c.scores.data(), c.classes.data(), static_cast<int64_t>(c.scores.size()), options);
    found_.clear();
    for (const int32_t index : kept) {
      const size_t i = static_cast<size_t>(index);
      float b[4];
      std::copy(&c.boxes[4 * i], &c.boxes[4 * i] + 4, b);
      if (geometry) geometry->to_image(b);
      found_.push_back({b[0], b[1], b[2], b[3], std::min(c.scores[i], 1.0f), c.classes[i]});
    }
    return found_;
  }

 private:
  Decoder decoder_;
  Nms nms_;
  std::vector<Detection> found_;
};

}  // namespace rw
