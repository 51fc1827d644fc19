// From the outputs of a network to candidates: boxes in input pixels, scores and classes. The same numbers as detect/decode.py,
// but scores come first, and only boxes whose score passes are decoded; where scores are logits, logits are compared.
//
// exp and tanh are the C library's here and NumPy's there: scores and boxes may differ by a few units in the last place, so a
// score that close to the threshold may pass in one and not in the other. NaN is an error where it is met, which is among
// objectness and scores that are looked at. A score threshold of 0 or less makes every pair a candidate.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "detect/task.h"
#include "kernels/kernels.h"

namespace rw {

struct OutputPort {
  std::string name;
  std::vector<int64_t> dims;  // batch 1
  int64_t count() const;
};

constexpr size_t kCandidates = 3000;  // at most so many go to suppression, as in detect/decode.py

struct Candidates {
  std::vector<float> boxes, scores;  // x1, y1, x2, y2 each
  std::vector<int32_t> classes;
};

// Element (row, channel) of an output lies at offset + row * row_step + channel * channel_step.
struct OutputView {
  int output = -1;
  int64_t offset = 0, row_step = 0, channel_step = 0;

  const float* at(const float* const* outputs, int64_t row, int64_t channel) const {
    return outputs[output] + offset + row * row_step + channel * channel_step;
  }
};

// What the four (or more) numbers of a box mean; formulas in detect/heads.py.
enum class BoxForm { yolox, yolov5, yolov3, distances, fastestdet, xyxy, yxyx, cxcywh };

// How scores are made: objectness x class; class; FastestDet's powers; a softmax with background.
enum class ScoreForm { product, plain, powers, softmax };

struct Level {
  OutputView box, objectness, classes;
  int64_t rows = 0, first = 0;          // first: number of its first row among all
  int columns = 1, grid_rows = 1;       // of the grid: row r is cell (r % columns, r / columns)
  float stride = 1, anchor_w = 0, anchor_h = 0;
};

// What was found out about the outputs once and for all.
struct Heads {
  BoxForm box = BoxForm::cxcywh;
  ScoreForm score = ScoreForm::plain;
  bool best_class_only = false;
  float cell_offset = 0;                // of the point from the cell's corner
  std::vector<Level> levels;
  int background = -1;                  // its column, or -1
  int finished[4] = {-1, -1, -1, -1};   // SSD behind its NMS: outputs of boxes, classes, scores and perhaps the count
};

// Finds boxes and scores among the outputs by `spec.outputs` or by shape. Throws Error where they do not fit the kind.
Heads find_heads(const DecodeSpec& spec, const std::vector<OutputPort>& ports);
Heads find_ssd(const DecodeSpec& spec, const std::vector<OutputPort>& ports, const std::vector<int>& chosen);  // ssd.cc
std::vector<int> choose_outputs(const DecodeSpec& spec, const std::vector<OutputPort>& ports);  // `spec.outputs` in its order, or all
[[noreturn]] void refuse_outputs(const DecodeSpec& spec, const std::vector<OutputPort>& ports, const std::vector<int>& chosen, const std::string& wanted);

void require_input_size(const DecodeSpec& spec, const Heads& heads);  // where boxes are fractions of it

// The box of a row in input pixels.
void decode_box(const Heads& heads, const DecodeSpec& spec, const Level& level, const float* const* outputs, int64_t row, float box_xyxy[4]);

class Decoder {
 public:
  Decoder(const DecodeSpec& spec, const std::vector<OutputPort>& ports, const Kernels& kernels);

  // outputs: one pointer per port, C order. Valid until the next call; memory is taken by the constructor. Throws Error for scores above 1,
  // which are undeclared logits, and for boxes that are not finite.
  const Candidates& run(const float* const* outputs, float score_threshold);

 private:
  struct Pair {
    uint64_t flat;  // row * classes + class, or row where a box has its best class only: the order of ties
    float score;
    int32_t level, cls;
    int64_t row;
  };

  void scan_product(const float* const* outputs, int level, float threshold);
  void scan_plain(const float* const* outputs, int level, float threshold);
  void scan_powers(const float* const* outputs, int level, float threshold);
  void scan_softmax(const float* const* outputs, int level, float threshold);
  void read_finished(const float* const* outputs, float threshold);
  int64_t rows_from(const float* const* outputs, const OutputView& view, int64_t rows, float limit);
  int64_t classes_from(const float* const* outputs, const Level& level, int64_t row, float limit);
  void add(int level, int64_t row, int cls, float score);
  void keep_best(size_t begin);
  void limit_pairs();
  [[noreturn]] void refuse_nan(int output) const;

  const Kernels& kernels_;
  DecodeSpec spec_;
  std::vector<OutputPort> ports_;
  Heads heads_;
  std::vector<Pair> pairs_;
  std::vector<int32_t> row_index_, class_index_;
  std::vector<float> softmax_;
  Candidates found_;
};

// Class probabilities of one image, as classify() of detect/decode.py.
class Classifier {
 public:
  Classifier(const DecodeSpec& spec, const std::vector<OutputPort>& ports);

  const std::vector<float>& run(const float* const* outputs);

 private:
  DecodeSpec spec_;
  OutputPort port_;
  int output_ = -1;
  std::vector<float> scores_;
};

float sigmoid(float x);
void softmax(const float* x, int64_t step, int n, float* y);  // y is dense

}  // namespace rw
