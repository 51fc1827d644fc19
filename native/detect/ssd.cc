// Outputs of SSD-like networks: boxes and scores in front of an NMS, or boxes, classes and scores behind one (detect/ssd.py).
#include <algorithm>
#include <cmath>
#include <string>

#include "detect/decode.h"
#include "engine/error.h"

namespace rw {
namespace {

using Ports = std::vector<OutputPort>;
using Chosen = std::vector<int>;

bool says(const std::string& name, const char* word) {
  std::string low = name;
  for (char& c : low) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return low.find(word) != std::string::npos;
}

int background_column(const DecodeSpec& spec) {
  if (!spec.has_background) return -1;
  const int columns = spec.num_classes + 1;
  if (spec.background < -columns || spec.background >= columns)
    fail("ssd: background column " + std::to_string(spec.background) + " does not exist among " + std::to_string(columns) + " columns");
  return spec.background < 0 ? spec.background + columns : spec.background;
}

Heads find_finished(const DecodeSpec& spec, const Ports& ports, const Chosen& chosen) {
  const std::string wanted = "boxes (1, N, 4), classes (1, N) and scores (1, N)";
  const auto port = [&](int i) -> const OutputPort& { return ports[static_cast<size_t>(i)]; };
  int boxes = -1;
  for (int i : chosen)
    if (port(i).dims.size() > 1 && port(i).dims.back() == 4 && (boxes < 0 || port(i).count() > port(boxes).count())) boxes = i;
  if (boxes < 0) refuse_outputs(spec, ports, chosen, wanted);
  const int64_t n = port(boxes).count() / 4;
  Chosen rows, of_classes, of_scores;
  int count = -1;
  for (int i : chosen) {
    if (i == boxes) continue;
    const bool counts = says(port(i).name, "num") || says(port(i).name, "count");
    if (port(i).count() == n && !counts) rows.push_back(i);
    if (count < 0 && port(i).count() == 1 && (n != 1 || counts)) count = i;
  }
  if (rows.size() < 2) refuse_outputs(spec, ports, chosen, wanted);
  if (!spec.outputs.empty()) {
    of_classes = {rows[0]};
    of_scores = {rows[1]};
  } else {
    for (int i : rows) (says(port(i).name, "class") || says(port(i).name, "label") ? of_classes : of_scores).push_back(i);
  }
  if (of_classes.size() != 1 || of_scores.size() != 1) fail("ssd: cannot tell classes from scores; name `outputs` in the order " + wanted);
  Heads heads;
  Level level;
  level.rows = n;
  level.box = {boxes, 0, 4, 1};
  heads.levels.push_back(level);
  const int found[4] = {boxes, of_classes[0], of_scores[0], count};
  std::copy(found, found + 4, heads.finished);
  return heads;
}

}  // namespace

Heads find_ssd(const DecodeSpec& spec, const Ports& ports, const Chosen& chosen) {
  Heads heads;
  const int64_t columns = spec.num_classes + (spec.has_background ? 1 : 0);
  if (chosen.size() > 2) {
    heads = find_finished(spec, ports, chosen);
  } else {
    const std::string wanted = "boxes (1, N, 4) and scores (1, N, " + std::to_string(columns) + ")";
    struct Array {
      int output;
      int64_t rows, columns;
    };
    std::vector<Array> tables, boxes, scores;
    for (int i : chosen) {
      const auto& d = ports[static_cast<size_t>(i)].dims;
      if (d.size() == 3 && d[0] == 1) tables.push_back({i, d[1], d[2]});
      if (d.size() == 2) tables.push_back({i, d[0], d[1]});
    }
    for (const Array& t : tables) {
      if (t.columns == 4) boxes.push_back(t);
      if (t.columns == columns) scores.push_back(t);
    }
    if (columns == 4 && tables.size() == 2) {
      if (spec.outputs.empty()) fail("ssd: boxes and scores both have 4 columns; name them in `outputs`, boxes first");
      boxes = {tables[0]};
      scores = {tables[1]};
    }
    if (boxes.size() != 1 || scores.size() != 1 || boxes[0].rows != scores[0].rows) refuse_outputs(spec, ports, chosen, wanted);
    Level level;
    level.rows = boxes[0].rows;
    level.box = {boxes[0].output, 0, 4, 1};
    level.classes = {scores[0].output, 0, columns, 1};
    heads.levels.push_back(level);
    heads.score = spec.scores_are_logits && spec.has_background ? ScoreForm::softmax : ScoreForm::plain;
  }
  heads.background = background_column(spec);
  heads.box = spec.box_format == "yxyx" ? BoxForm::yxyx : spec.box_format == "cxcywh" ? BoxForm::cxcywh : BoxForm::xyxy;
  require_input_size(spec, heads);
  return heads;
}

}  // namespace rw
