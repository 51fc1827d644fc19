// Scores first. A pass over objectness or scores leaves few pairs of row and class; only those are computed exactly, as
// detect/heads.py does, and only their boxes are decoded.
//
// The pass compares with a limit that is lower than needed, so that rounding loses nothing: a raw value below it cannot give a
// score of the threshold t. A class probability is at most 1.05 (kSlack; more is refused where it is met), so objectness must
// be at least t / 1.0625; a logit must be at least logit(t), less a margin: sigmoid by tanh is off
// by up to 2e-7, which is 2e-7 / (t (1 - t)) in the logit, and the limit's own rounding is far below 0.001 of it.
#include "detect/decode.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "engine/error.h"

namespace rw {
namespace {

constexpr size_t kMostPairs = 1 << 20;  // room that is made beforehand
constexpr float kSlack = 0.05f;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// No value below it is the logit of a probability of p or more.
float logit_limit(double p) {
  if (p <= 0) return kLowest;
  if (p >= 1 - 1e-6) return 13.0f;  // less than the logit of 1 - 1e-6, by more than the margin
  const double logit = std::log(p / (1 - p));
  return static_cast<float>(logit - 1e-3 * std::max(1.0, std::fabs(logit)) - 2e-7 / (p * (1 - p)));
}

float share_limit(float threshold, float other) {
  if (!(threshold > 0) || !(other > 0)) return kLowest;
  return threshold / other * (1 - 1e-6f);
}

}  // namespace

Decoder::Decoder(const DecodeSpec& spec, const std::vector<OutputPort>& ports, const Kernels& kernels)
    : kernels_(kernels), spec_(spec), ports_(ports), heads_(find_heads(spec, ports)) {
  size_t longest = 0;
  for (const Level& level : heads_.levels) longest = std::max(longest, static_cast<size_t>(level.rows));
  const size_t columns = static_cast<size_t>(spec.num_classes) + 1;
  row_index_.resize(longest + 16);
  class_index_.resize(columns + 16);
  softmax_.resize(columns);
  // Any image may be full of objects: all pairs have room (untouched, it costs nothing).
  size_t pairs = 0;
  for (const Level& level : heads_.levels) pairs += static_cast<size_t>(level.rows) * (heads_.best_class_only || heads_.finished[0] >= 0 ? 1 : columns);
  pairs_.reserve(std::min(pairs + columns, kMostPairs));
  found_.boxes.reserve(4 * kCandidates);
  found_.scores.reserve(kCandidates);
  found_.classes.reserve(kCandidates);
}

void Decoder::refuse_nan(int output) const {
  fail("output '" + ports_[static_cast<size_t>(output)].name + "' holds NaN; the model is broken or was fed a wrong input");
}

// The rows whose first channel is not below the limit, in row_index_.
int64_t Decoder::rows_from(const float* const* outputs, const OutputView& view, int64_t rows, float limit) {
  const float* x = view.at(outputs, 0, 0);
  if (view.row_step == 1) return kernels_.scan_f32(x, rows, limit, row_index_.data());
  int64_t found = 0;
  for (int64_t row = 0; row < rows; ++row, x += view.row_step) {
    row_index_[static_cast<size_t>(found)] = static_cast<int32_t>(row);
    found += !(*x < limit);
  }
  return found;
}

// The columns of a row of class scores that are not below the limit, in class_index_.
int64_t Decoder::classes_from(const float* const* outputs, const Level& level, int64_t row, float limit) {
  const int columns = spec_.num_classes + (heads_.background >= 0 ? 1 : 0);
  const float* x = level.classes.at(outputs, row, 0);
  if (level.classes.channel_step == 1) return kernels_.scan_f32(x, columns, limit, class_index_.data());
  int64_t found = 0;
  for (int c = 0; c < columns; ++c, x += level.classes.channel_step) {
    class_index_[static_cast<size_t>(found)] = c;
    found += !(*x < limit);
  }
  return found;
}

void Decoder::add(int level, int64_t row, int cls, float score) {
  const uint64_t flat = static_cast<uint64_t>(heads_.levels[static_cast<size_t>(level)].first + row) * static_cast<uint64_t>(spec_.num_classes) + static_cast<uint64_t>(cls);
  pairs_.push_back({flat, score, level, cls, row});
}

// Of what was added for this row, behind `begin`, keeps the best; the first of equals.
void Decoder::keep_best(size_t begin) {
  if (pairs_.size() < begin + 2) return;
  size_t best = begin;
  for (size_t i = begin + 1; i < pairs_.size(); ++i)
    if (pairs_[i].score > pairs_[best].score) best = i;
  pairs_[begin] = pairs_[best];
  pairs_.resize(begin + 1);
}

void Decoder::scan_product(const float* const* outputs, int at, float threshold) {
  const Level& level = heads_.levels[static_cast<size_t>(at)];
  const bool logits = spec_.scores_are_logits;
  const float limit = logits ? logit_limit(threshold) : share_limit(threshold, 1.0f + 1.25f * kSlack);
  const int64_t rows = rows_from(outputs, level.objectness, level.rows, limit);
  for (int64_t k = 0; k < rows; ++k) {
    const int64_t row = row_index_[static_cast<size_t>(k)];
    const float raw = *level.objectness.at(outputs, row, 0), objectness = logits ? sigmoid(raw) : raw;
    if (std::isnan(raw)) refuse_nan(level.objectness.output);
    const float share = share_limit(threshold, objectness);
    const int64_t found = classes_from(outputs, level, row, logits ? logit_limit(share) : share);
    const size_t begin = pairs_.size();
    for (int64_t i = 0; i < found; ++i) {
      const int c = class_index_[static_cast<size_t>(i)];
      const float value = *level.classes.at(outputs, row, c);
      if (std::isnan(value)) refuse_nan(level.classes.output);
      const float score = objectness * (logits ? sigmoid(value) : value);
      if (score >= threshold) add(at, row, c, score);
    }
    if (heads_.best_class_only) keep_best(begin);
  }
}

// score = objectness^0.6 * class^0.4, both at least 0.
void Decoder::scan_powers(const float* const* outputs, int at, float threshold) {
  const Level& level = heads_.levels[static_cast<size_t>(at)];
  const bool logits = spec_.scores_are_logits;
  // class^0.4 is at most 1.02 for a class of 1.05, and 1.1 covers more than the slack
  const double lowest = threshold > 0 ? std::pow(static_cast<double>(threshold) / 1.1, 1 / 0.6) : 0;
  const float limit = threshold > 0 ? (logits ? logit_limit(lowest) : static_cast<float>(lowest * (1 - 1e-5))) : kLowest;
  const int64_t rows = rows_from(outputs, level.objectness, level.rows, limit);
  const int64_t step = level.classes.channel_step;
  for (int64_t k = 0; k < rows; ++k) {
    const int64_t row = row_index_[static_cast<size_t>(k)];
    const float raw = *level.objectness.at(outputs, row, 0), objectness = logits ? sigmoid(raw) : raw;
    if (std::isnan(raw)) refuse_nan(level.objectness.output);
    const float* values = level.classes.at(outputs, row, 0);
    for (int c = 0; c < spec_.num_classes; ++c) {
      softmax_[static_cast<size_t>(c)] = std::max(values[c * step], 0.0f);  // an int8 output may dip below zero
      if (std::isnan(values[c * step])) refuse_nan(level.classes.output);
    }
    if (logits) softmax(values, step, spec_.num_classes, softmax_.data());
    const float outer = std::pow(std::max(objectness, 0.0f), 0.6f);
    // a power is monotone, so only classes near the largest can be best; those within rounding of it are all computed
    const float largest = *std::max_element(softmax_.begin(), softmax_.begin() + spec_.num_classes);
    const size_t begin = pairs_.size();
    for (int c = 0; c < spec_.num_classes; ++c) {
      const float value = softmax_[static_cast<size_t>(c)];
      if (value < largest * (1 - 1e-5f)) continue;
      const float score = outer * std::pow(value, 0.4f);
      if (score >= threshold) add(at, row, c, score);
    }
    keep_best(begin);
  }
}

void Decoder::scan_plain(const float* const* outputs, int at, float threshold) {
  const Level& level = heads_.levels[static_cast<size_t>(at)];
  const bool logits = spec_.scores_are_logits, planes = level.classes.row_step == 1 && level.classes.channel_step != 1;
  const float limit = logits ? logit_limit(threshold) : threshold;
  const int background = heads_.background;
  const auto take = [&](int64_t row, int column) {
    const float raw = *level.classes.at(outputs, row, column);
    if (std::isnan(raw)) refuse_nan(level.classes.output);
    const float score = logits ? sigmoid(raw) : raw;
    if (column != background && score >= threshold) add(at, row, background >= 0 && column > background ? column - 1 : column, score);
  };
  if (planes) {
    const int columns = spec_.num_classes + (background >= 0 ? 1 : 0);
    const size_t begin = pairs_.size();
    for (int c = 0; c < columns; ++c) {
      const int64_t found = kernels_.scan_f32(level.classes.at(outputs, 0, c), level.rows, limit, row_index_.data());
      for (int64_t i = 0; i < found; ++i) take(row_index_[static_cast<size_t>(i)], c);
    }
    std::sort(pairs_.begin() + static_cast<std::ptrdiff_t>(begin), pairs_.end(), [](const Pair& a, const Pair& b) { return a.flat < b.flat; });
    return;
  }
  for (int64_t row = 0; row < level.rows; ++row) {
    const int64_t found = classes_from(outputs, level, row, limit);
    for (int64_t i = 0; i < found; ++i) take(row, class_index_[static_cast<size_t>(i)]);
  }
}

// exp(x) / sum(exp) is at most exp(x - background): only rows with an x of background + log(t) or more need their softmax.
void Decoder::scan_softmax(const float* const* outputs, int at, float threshold) {
  const Level& level = heads_.levels[static_cast<size_t>(at)];
  const int background = heads_.background, columns = spec_.num_classes + 1;
  const float drop = threshold > 0 ? static_cast<float>(std::log(static_cast<double>(threshold)) - 1e-3) : kLowest;
  for (int64_t row = 0; row < level.rows; ++row) {
    const float* x = level.classes.at(outputs, row, 0);
    const int64_t step = level.classes.channel_step;
    const int64_t found = classes_from(outputs, level, row, x[background * step] + drop);
    if (found == 0 || (found == 1 && class_index_[0] == background && !std::isnan(x[background * step]))) continue;
    for (int64_t i = 0; i < found; ++i)
      if (std::isnan(x[class_index_[static_cast<size_t>(i)] * step])) refuse_nan(level.classes.output);
    softmax(x, step, columns, softmax_.data());
    for (int c = 0; c < columns; ++c)
      if (c != background && softmax_[static_cast<size_t>(c)] >= threshold) add(at, row, c > background ? c - 1 : c, softmax_[static_cast<size_t>(c)]);
  }
}

// Behind the network's own NMS a row is a detection, and the count says how many are real.
void Decoder::read_finished(const float* const* outputs, float threshold) {
  const int* f = heads_.finished;
  int64_t rows = heads_.levels[0].rows;
  if (f[3] >= 0) {
    const float count = outputs[f[3]][0];
    if (std::isnan(count)) refuse_nan(f[3]);
    rows = std::max<int64_t>(0, std::min<int64_t>(rows, static_cast<int64_t>(std::min(count, 2e9f))));
  }
  for (int64_t row = 0; row < rows; ++row) {
    const float score = outputs[f[2]][row], label = std::nearbyint(outputs[f[1]][row]);
    if (std::isnan(score)) refuse_nan(f[2]);
    if (std::isnan(label)) refuse_nan(f[1]);
    if (score <= 0 || (heads_.background >= 0 && label == static_cast<float>(heads_.background))) continue;
    const float cls = heads_.background >= 0 && label > static_cast<float>(heads_.background) ? label - 1 : label;
    if (cls < 0 || cls >= static_cast<float>(spec_.num_classes))
      fail("ssd: class " + std::to_string(static_cast<int64_t>(std::max(std::min(cls, 2e9f), -2e9f))) + " is outside the " +
           std::to_string(spec_.num_classes) + " of the decode spec");
    if (score >= threshold) add(0, row, static_cast<int>(cls), score);
  }
}

// Keeps the best kCandidates in their order; of equal scores the earlier.
void Decoder::limit_pairs() {
  if (pairs_.size() <= kCandidates) return;
  const auto cut = pairs_.begin() + static_cast<std::ptrdiff_t>(kCandidates);
  std::nth_element(pairs_.begin(), cut, pairs_.end(), [](const Pair& a, const Pair& b) { return a.score != b.score ? a.score > b.score : a.flat < b.flat; });
  pairs_.resize(kCandidates);
  std::sort(pairs_.begin(), pairs_.end(), [](const Pair& a, const Pair& b) { return a.flat < b.flat; });
}

const Candidates& Decoder::run(const float* const* outputs, float threshold) {
  pairs_.clear();
  const int levels = heads_.finished[0] >= 0 ? 0 : static_cast<int>(heads_.levels.size());
  if (heads_.finished[0] >= 0) read_finished(outputs, threshold);
  for (int level = 0; level < levels; ++level) {
    switch (heads_.score) {
      case ScoreForm::product: scan_product(outputs, level, threshold); break;
      case ScoreForm::plain: scan_plain(outputs, level, threshold); break;
      case ScoreForm::powers: scan_powers(outputs, level, threshold); break;
      case ScoreForm::softmax: scan_softmax(outputs, level, threshold); break;
    }
  }
  float highest = 0;
  for (const Pair& pair : pairs_) highest = std::max(highest, pair.score);
  if (highest > 1 + kSlack)
    fail(spec_.kind + ": a score is " + std::to_string(highest) + ", above 1; set scores_are_logits if the graph has no sigmoid");
  limit_pairs();
  found_.boxes.resize(pairs_.size() * 4);
  found_.scores.resize(pairs_.size());
  found_.classes.resize(pairs_.size());
  for (size_t i = 0; i < pairs_.size(); ++i) {
    const Pair& pair = pairs_[i];
    float* box = &found_.boxes[4 * i];
    decode_box(heads_, spec_, heads_.levels[static_cast<size_t>(pair.level)], outputs, pair.row, box);
    for (int k = 0; k < 4; ++k)
      if (!std::isfinite(box[k])) fail(spec_.kind + ": a decoded box is not finite; the model's box outputs are broken");
    found_.scores[i] = pair.score;
    found_.classes[i] = pair.cls;
  }
  return found_;
}

}  // namespace rw
