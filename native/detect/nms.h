// Greedy non-maximum suppression, the same sets as detect/nms.py: take the best box that is left, drop every box whose IoU
// with it is strictly above the threshold, repeat; of equal scores the earlier index comes first.
#pragma once
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/kernels.h"

namespace rw {

struct NmsOptions {
  double iou_threshold = 0.65;     // 0..1
  float score_threshold = -std::numeric_limits<float>::infinity();  // boxes below take no part
  int64_t max_detections = -1;     // at most so many are kept; -1: all
};

// Holds the working memory, which only grows: the second call of a size allocates nothing. Not shared between threads.
class Nms {
 public:
  explicit Nms(const Kernels& kernels) : kernels_(kernels) {}

  // Makes room for n boxes at once.
  void reserve(size_t n);

  // boxes: n times x1, y1, x2, y2.   scores: n.   labels: n, boxes of different labels never suppress each other; null: all may.
  // Returns the indices kept, best first; valid until the next call.
  // Throws Error when a score is NaN, or a coordinate of a box that takes part is not finite; n is at most 2^31 - 1.
  const std::vector<int32_t>& run(const float* boxes, const float* scores, const int32_t* labels, int64_t n, const NmsOptions& options);

 private:
  void sort(const float* scores, int64_t n, float threshold);
  static bool tame(const float* boxes, int64_t n);
  void gather(const float* boxes, const int32_t* labels, double iou_threshold);
  void require_finite() const;
  int64_t compact(int64_t group, int64_t groups, bool labelled);

  const Kernels& kernels_;
  std::vector<uint64_t> keys_, spare_;              // sortable score << 32 | index
  std::vector<float> x1_, y1_, x2_, y2_, bound_;
  std::vector<int32_t> label_, index_, kept_;
  std::vector<uint16_t> alive_;
};

}  // namespace rw
