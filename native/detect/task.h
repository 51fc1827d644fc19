// The task of a plan: how an image becomes the network's input (Preprocess, data/preprocess.py) and how the outputs become
// results (DecodeSpec, detect/spec.py). Those two files define what each field means.
//
// In a plan it is the text section: lines `key<TAB>value`, each ended by a newline, UTF-8. Keys are the field names of the two
// dataclasses, which share none; a line may be left out, which gives the field's default; unknown keys (`task_json`) are passed over.
//
//   numbers    as Python's repr writes them: 416, -0.5, 1e-05            booleans   0 or 1
//   lists      separated by one space: `size_hw<TAB>416 416`; empty is an empty list
//   anchors    width and height in turn, separated by spaces; levels separated by `;`: `10 13 16 30;30 61 62 45`
//   names      (class_names, outputs) separated by `;`. Within a name, backslash, `;`, tab and newline are written as
//              `\\`, `\;`, `\t`, `\n`. An empty value is an empty list (a list of one empty name cannot be written).
//   background empty for None
//
// Preprocess: size_hw resize anchor pad_value short_side color layout scale mean std interpolation
// DecodeSpec: kind num_classes input_hw strides anchors decoded scores_are_logits reg_max box_format normalized background
//             outputs class_names score_threshold iou_threshold max_detections
//
// A plan without a task has no line `kind`; `kind` is then empty here, and no detector can be made from it.
#pragma once
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace rw {

enum class Resize { letterbox, stretch, crop, none };
enum class Anchor { topleft, center };
enum class Color { bgr, rgb, gray };
enum class Interpolation { nearest, linear, cubic, area };  // OpenCV's numbers

struct Preprocess {
  int height = 0, width = 0;  // size_hw; 0 where the task gives none
  Resize resize = Resize::letterbox;
  Anchor anchor = Anchor::topleft;
  int pad_value = 114;
  int short_side = 0;
  Color color = Color::bgr;
  bool nhwc = false;
  double scale = 1.0;
  std::vector<double> mean, std;  // one entry per channel
  Interpolation interpolation = Interpolation::linear;

  int channels() const { return color == Color::gray ? 1 : 3; }
};

struct DecodeSpec {
  std::string kind;
  int num_classes = 0;
  int input_height = 0, input_width = 0;  // input_hw
  std::vector<int> strides;
  std::vector<std::vector<std::pair<float, float>>> anchors;  // per level (width, height)
  bool decoded = false;
  bool scores_are_logits = false;
  int reg_max = 0;
  std::string box_format = "xyxy";
  bool normalized = false;
  bool has_background = false;
  int background = 0;
  std::vector<std::string> outputs, class_names;
  double score_threshold = 0.3;
  double iou_threshold = 0.65;
  int max_detections = 100;
};

struct Task {
  Preprocess preprocess;
  DecodeSpec decode;
};

// Reads the text section. Returns false and sets `error` to one sentence naming the key at fault.
bool parse_task(const char* text, size_t bytes, Task* task, std::string* error);

}  // namespace rw
