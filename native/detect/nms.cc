// Suppression by bit masks. Boxes are sorted once and held as arrays in groups of 16 with a mask of those alive; the boxes kept
// of a group clear bits behind it (the upper triangle). Where a third of what is left is dead, the living are moved together.
#include "detect/nms.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "engine/error.h"

namespace rw {
namespace {

// Below this many boxes std::sort is faster than counting digits.
constexpr size_t kFewBoxes = 96;
constexpr int64_t kWorthMoving = 16;  // groups

// Ascending keys are descending scores; -0 and 0 are equal.
uint32_t descending(float score) {
  score += 0.0f;
  uint32_t u;
  memcpy(&u, &score, 4);
  return ~(u & 0x80000000u ? ~u : u | 0x80000000u);
}

// Stable counting sort by the upper half of the keys, `bits` at a time; digits that all keys share are passed over.
void sort_digits(std::vector<uint64_t>* keys, std::vector<uint64_t>* spare, int bits) {
  const size_t n = keys->size();
  const uint32_t mask = (1u << bits) - 1;
  uint32_t count[2048];
  for (int shift = 32; shift < 64; shift += bits) {
    memset(count, 0, sizeof(uint32_t) * (mask + 1));
    for (uint64_t key : *keys) ++count[key >> shift & mask];
    if (count[(*keys)[0] >> shift & mask] == n) continue;
    uint32_t place = 0;
    for (uint32_t d = 0; d <= mask; ++d) {
      uint32_t here = count[d];
      count[d] = place;
      place += here;
    }
    for (uint64_t key : *keys) (*spare)[count[key >> shift & mask]++] = key;
    keys->swap(*spare);
  }
}

}  // namespace

void Nms::reserve(size_t n) {
  const size_t padded = (n + 15) / 16 * 16;
  keys_.reserve(padded);
  spare_.reserve(padded);
  for (auto* array : {&x1_, &y1_, &x2_, &y2_, &bound_}) array->reserve(padded);
  for (auto* array : {&label_, &index_, &kept_}) array->reserve(padded);
  alive_.reserve(padded / 16);
}

void Nms::sort(const float* scores, int64_t n, float threshold) {
  keys_.resize(static_cast<size_t>(n));
  size_t count = 0;
  for (int64_t i = 0; i < n; ++i) {  // without branches, as which scores pass is not predictable
    keys_[count] = uint64_t(descending(scores[i])) << 32 | static_cast<uint32_t>(i);
    count += !(scores[i] < threshold);  // NaN passes, to be found below
  }
  keys_.resize(count);
  if (count <= kFewBoxes) {
    std::sort(keys_.begin(), keys_.end());
  } else {
    spare_.resize(count);
    sort_digits(&keys_, &spare_, count < 4096 ? 8 : 11);
  }
  if (!count) return;
  for (uint64_t key : {keys_.front(), keys_.back()}) {  // NaN sorts before or behind every number, by its sign
    const uint32_t i = static_cast<uint32_t>(key);
    if (std::isnan(scores[i])) fail("score " + std::to_string(i) + " is NaN; give numbers");
  }
}

// Whether every coordinate is 0 or between 1e-8 and 1e18: then a side is 0 or at least 1e-8 * 2^-24, and products of two sides
// lie within 1e-31 and 1e37. Compared as integers, which vectorizes.
bool Nms::tame(const float* boxes, int64_t n) {
  constexpr int32_t low = 0x322bcc77, high = 0x5d5e0b6b;  // 1e-8f, 1e18f
  int32_t wild = 0;
  for (int64_t i = 0; i < 4 * n; ++i) {
    int32_t u;
    memcpy(&u, boxes + i, 4);
    u &= 0x7fffffff;
    wild |= (-(u < low) & u) | -(u > high);
  }
  return wild == 0;
}

// Fills the arrays in sorted order.
void Nms::gather(const float* boxes, const int32_t* labels, double iou_threshold) {
  const size_t n = keys_.size(), padded = (n + 15) / 16 * 16;
  for (auto* array : {&x1_, &y1_, &x2_, &y2_, &bound_}) array->resize(padded);
  index_.resize(padded);
  if (labels) label_.resize(padded);
  for (size_t k = 0; k < n; ++k) {
    const uint32_t i = static_cast<uint32_t>(keys_[k]);
    float box[4];
    memcpy(box, boxes + 4 * size_t(i), sizeof box);
    x1_[k] = box[0];
    y1_[k] = box[1];
    x2_[k] = box[2];
    y2_[k] = box[3];
    index_[k] = static_cast<int32_t>(i);
    if (labels) label_[k] = labels[i];
  }
  for (size_t k = n; k < padded; ++k) x1_[k] = y1_[k] = x2_[k] = y2_[k] = 0;
  const float factor = static_cast<float>(iou_threshold / (1 + iou_threshold) * (1 - 1.0 / (1 << 18)));
  for (size_t k = 0; k < padded; ++k) {
    const float w = x2_[k] - x1_[k], h = y2_[k] - y1_[k];
    bound_[k] = (w > 0 ? w : 0) * (h > 0 ? h : 0) * factor;
  }
  alive_.assign(padded / 16, 0xffff);
  if (n % 16) alive_.back() = static_cast<uint16_t>((1u << n % 16) - 1);
}

void Nms::require_finite() const {
  for (size_t k = 0; k < keys_.size(); ++k)
    if (!std::isfinite(x1_[k]) || !std::isfinite(y1_[k]) || !std::isfinite(x2_[k]) || !std::isfinite(y2_[k]))
      fail("box " + std::to_string(index_[k]) + " has a coordinate that is not finite; give numbers");
}

// Moves the living boxes of groups [group, groups) together, from `group` on; returns the new number of groups.
int64_t Nms::compact(int64_t group, int64_t groups, bool labelled) {
  int64_t to = group * 16;
  for (int64_t g = group; g < groups; ++g) {
    for (unsigned bits = alive_[static_cast<size_t>(g)]; bits; bits &= bits - 1, ++to) {
      const size_t a = static_cast<size_t>(to), b = static_cast<size_t>(g * 16 + __builtin_ctz(bits));
      x1_[a] = x1_[b];
      y1_[a] = y1_[b];
      x2_[a] = x2_[b];
      y2_[a] = y2_[b];
      bound_[a] = bound_[b];
      index_[a] = index_[b];
      if (labelled) label_[a] = label_[b];
    }
  }
  const int64_t end = (to + 15) / 16;
  for (int64_t g = group; g < end; ++g) alive_[static_cast<size_t>(g)] = 0xffff;
  if (to % 16) alive_[static_cast<size_t>(end - 1)] = static_cast<uint16_t>((1u << to % 16) - 1);
  return end;
}

const std::vector<int32_t>& Nms::run(const float* boxes, const float* scores, const int32_t* labels, int64_t n, const NmsOptions& options) {
  kept_.clear();
  sort(scores, n, options.score_threshold);
  if (options.max_detections == 0 || keys_.empty()) return kept_;
  gather(boxes, labels, options.iou_threshold);
  const bool tame = Nms::tame(boxes, n) && (options.iou_threshold == 0 || options.iou_threshold > 1e-6);
  if (!tame) require_finite();
  const BoxArrays s = {x1_.data(), y1_.data(), x2_.data(), y2_.data(), bound_.data(), labels ? label_.data() : nullptr, tame};
  const size_t limit = static_cast<size_t>(options.max_detections < 0 ? n : options.max_detections);
  int64_t groups = static_cast<int64_t>(alive_.size()), left = static_cast<int64_t>(keys_.size());
  for (int64_t group = 0; group < groups; ++group) {
    // First the boxes of the group among themselves; those kept then sweep what is behind the group at once.
    uint16_t& alive = alive_[static_cast<size_t>(group)];
    int32_t kept[16];
    int count = 0;
    left -= __builtin_popcount(alive);
    while (alive) {
      const int32_t box = static_cast<int32_t>(group * 16 + __builtin_ctz(alive));
      alive = static_cast<uint16_t>(alive & (alive - 1));
      kept[count++] = box;
      kept_.push_back(index_[static_cast<size_t>(box)]);
      if (kept_.size() >= limit) return kept_;
      kernels_.suppress(s, &box, 1, options.iou_threshold, alive_.data(), group, group + 1);
    }
    if (!count || group + 1 == groups) continue;
    left -= kernels_.suppress(s, kept, count, options.iou_threshold, alive_.data(), group + 1, groups);
    if (groups - group > kWorthMoving && left * 3 < (groups - group) * 32) groups = compact(group + 1, groups, labels != nullptr);
  }
  return kept_;
}

}  // namespace rw
