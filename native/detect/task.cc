// Reading the text section of a plan. Nothing in it is trusted: every number is range-checked and every list has a longest length.
#include "detect/task.h"

#include <cmath>
#include <locale>
#include <sstream>
#include <stdexcept>

namespace rw {
namespace {

constexpr size_t kLongestList = 1 << 16;
constexpr int kLongestSide = 1 << 15;  // as data/preprocess.py

// A refusal within this file; `parse_task` turns it into its sentence.
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Line {
  std::string key, value;

  [[noreturn]] void refuse(const std::string& wanted) const {
    std::string shown = value.size() > 40 ? value.substr(0, 40) + "..." : value;
    for (char& c : shown)
      if (static_cast<unsigned char>(c) < 32 || static_cast<unsigned char>(c) > 126) c = '?';
    throw Refusal("the plan's task has " + key + " '" + shown + "', but it must be " + wanted + "; write the plan again");
  }
};

std::vector<std::string> split(const Line& line, const std::string& text, char separator) {
  std::vector<std::string> parts;
  if (text.empty()) return parts;
  size_t begin = 0;
  while (true) {
    size_t end = text.find(separator, begin);
    parts.push_back(text.substr(begin, end == std::string::npos ? end : end - begin));
    if (parts.size() > kLongestList) line.refuse("a shorter list");
    if (end == std::string::npos) return parts;
    begin = end + 1;
  }
}

double number(const Line& line, const std::string& text) {
  std::istringstream in(text);
  in.imbue(std::locale::classic());  // a decimal point in every locale
  double value = 0;
  in >> std::noskipws >> value;
  if (text.empty() || in.fail() || in.peek() != std::char_traits<char>::eof() || !std::isfinite(value)) line.refuse("a finite number");
  return value;
}

int whole(const Line& line, const std::string& text, int lowest, int highest) {
  double value = number(line, text);
  if (value != std::floor(value) || value < lowest || value > highest)
    line.refuse("a whole number from " + std::to_string(lowest) + " to " + std::to_string(highest));
  return static_cast<int>(value);
}

int whole(const Line& line, int lowest, int highest) { return whole(line, line.value, lowest, highest); }

bool boolean(const Line& line) { return whole(line, 0, 1) == 1; }

// The position of the value in a list of words, which is the value of the enum.
template <typename Enum>
Enum one_of(const Line& line, const char* words) {
  int position = 0;
  for (const std::string& word : split(line, words, ' ')) {
    if (word == line.value) return static_cast<Enum>(position);
    ++position;
  }
  line.refuse(std::string("one of ") + words);
}

std::vector<double> numbers(const Line& line) {
  std::vector<double> out;
  for (const std::string& part : split(line, line.value, ' ')) out.push_back(number(line, part));
  return out;
}

std::vector<int> wholes(const Line& line, int lowest, int highest) {
  std::vector<int> out;
  for (const std::string& part : split(line, line.value, ' ')) out.push_back(whole(line, part, lowest, highest));
  return out;
}

void size(const Line& line, int lowest, int* height, int* width) {
  std::vector<int> sides = wholes(line, lowest, kLongestSide);
  if (sides.size() != 2) line.refuse("two whole numbers, height and width");
  *height = sides[0];
  *width = sides[1];
}

std::vector<std::string> names(const Line& line) {
  std::vector<std::string> out;
  if (line.value.empty()) return out;
  out.emplace_back();
  for (size_t i = 0; i < line.value.size(); ++i) {
    char c = line.value[i];
    if (c == ';') {
      if (out.size() >= kLongestList) line.refuse("a shorter list");
      out.emplace_back();
      continue;
    }
    if (c == '\\') {
      char next = i + 1 < line.value.size() ? line.value[++i] : '\0';
      if (next != '\\' && next != ';' && next != 't' && next != 'n') line.refuse("names with \\\\, \\;, \\t and \\n as the only escapes");
      c = next == 't' ? '\t' : next == 'n' ? '\n' : next;
    }
    out.back().push_back(c);
  }
  return out;
}

void read_anchors(const Line& line, DecodeSpec* d) {
  d->anchors.clear();
  for (const std::string& level : split(line, line.value, ';')) {
    std::vector<std::string> sides = split(line, level, ' ');
    if (sides.size() % 2) line.refuse("pairs of width and height");
    d->anchors.emplace_back();
    for (size_t i = 0; i < sides.size(); i += 2) {
      auto side = [&](size_t k) { return static_cast<float>(number(line, sides[k])); };
      d->anchors.back().emplace_back(side(i), side(i + 1));
    }
  }
}

void read_line(const Line& line, Task* task) {
  Preprocess& p = task->preprocess;
  DecodeSpec& d = task->decode;
  const std::string& key = line.key;
  if (key == "size_hw") size(line, 1, &p.height, &p.width);
  else if (key == "resize") p.resize = one_of<Resize>(line, "letterbox stretch crop none");
  else if (key == "anchor") p.anchor = one_of<Anchor>(line, "topleft center");
  else if (key == "pad_value") p.pad_value = whole(line, 0, 255);
  else if (key == "short_side") p.short_side = whole(line, 0, kLongestSide);
  else if (key == "color") p.color = one_of<Color>(line, "bgr rgb gray");
  else if (key == "layout") p.nhwc = one_of<int>(line, "nchw nhwc") == 1;
  else if (key == "scale") p.scale = number(line, line.value);
  else if (key == "mean") p.mean = numbers(line);
  else if (key == "std") p.std = numbers(line);
  else if (key == "interpolation") p.interpolation = one_of<Interpolation>(line, "nearest linear cubic area");
  else if (key == "kind") d.kind = line.value;
  else if (key == "num_classes") d.num_classes = whole(line, 0, 1 << 20);
  else if (key == "input_hw") size(line, 0, &d.input_height, &d.input_width);
  else if (key == "strides") d.strides = wholes(line, 1, kLongestSide);
  else if (key == "anchors") read_anchors(line, &d);
  else if (key == "decoded") d.decoded = boolean(line);
  else if (key == "scores_are_logits") d.scores_are_logits = boolean(line);
  else if (key == "reg_max") d.reg_max = whole(line, 0, 1 << 10);
  else if (key == "box_format") one_of<int>(line, "xyxy yxyx cxcywh"), d.box_format = line.value;
  else if (key == "normalized") d.normalized = boolean(line);
  else if (key == "background") {
    d.has_background = !line.value.empty();
    d.background = d.has_background ? whole(line, -(1 << 20), 1 << 20) : 0;
  }
  else if (key == "outputs") d.outputs = names(line);
  else if (key == "class_names") d.class_names = names(line);
  else if (key == "score_threshold") d.score_threshold = number(line, line.value);
  else if (key == "iou_threshold") {
    d.iou_threshold = number(line, line.value);
    if (!(d.iou_threshold >= 0 && d.iou_threshold <= 1)) line.refuse("a fraction from 0 to 1");
  }
  else if (key == "max_detections") d.max_detections = whole(line, 0, 1 << 30);
}

void one_per_channel(const char* key, double otherwise, int channels, std::vector<double>* values) {
  if (values->empty()) values->assign(1, otherwise);
  if (values->size() == 1) values->assign(static_cast<size_t>(channels), (*values)[0]);
  if (values->size() != static_cast<size_t>(channels))
    throw Refusal("the plan's task has " + std::to_string(values->size()) + " values for " + key + ", but the input has " +
                  std::to_string(channels) + " channels; write the plan again");
}

void finish(Task* task) {
  Preprocess& p = task->preprocess;
  one_per_channel("mean", 0.0, p.channels(), &p.mean);
  one_per_channel("std", 1.0, p.channels(), &p.std);
  bool zero = p.scale == 0.0;
  for (double s : p.std) zero = zero || s == 0.0;
  if (zero) throw Refusal("the plan's task has a scale or std of 0, by which nothing can be divided; write the plan again");
  const DecodeSpec& d = task->decode;
  size_t names_given = d.class_names.size();
  if (names_given && d.num_classes && names_given != static_cast<size_t>(d.num_classes))
    throw Refusal("the plan's task has " + std::to_string(names_given) + " class_names for " + std::to_string(d.num_classes) +
                  " classes; write the plan again");
}

}  // namespace

bool parse_task(const char* text, size_t bytes, Task* task, std::string* error) {
  *task = Task();
  try {
    std::vector<std::string> seen;
    for (size_t begin = 0; begin < bytes;) {
      size_t end = begin, tab = bytes;
      for (; end < bytes && text[end] != '\n'; ++end)
        if (text[end] == '\t' && tab == bytes) tab = end;
      if (end > begin) {
        if (tab == bytes) throw Refusal("a line of the plan's task has no tab between key and value; write the plan again");
        Line line{std::string(text + begin, tab - begin), std::string(text + tab + 1, end - tab - 1)};
        for (const std::string& key : seen)
          if (key == line.key) line.refuse("given once");
        if (seen.size() > 1000) throw Refusal("the plan's task has more than 1000 lines; write the plan again");
        seen.push_back(line.key);
        read_line(line, task);
      }
      begin = end + 1;
    }
    finish(task);
    return true;
  } catch (const Refusal& refusal) {
    *error = refusal.what();
    return false;
  }
}

}  // namespace rw
