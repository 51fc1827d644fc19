// Which output is what: boxes and scores are found by name or by shape, and placed on the grid.
#include <algorithm>
#include <string>

#include "detect/decode.h"
#include "engine/error.h"

namespace rw {
namespace {

using Ports = std::vector<OutputPort>;
using Chosen = std::vector<int>;

std::string shape_text(const std::vector<int64_t>& dims) {
  std::string text = "(";
  for (size_t i = 0; i < dims.size(); ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + ")";
}

struct Cells {
  int rows, columns;
  int64_t count() const { return static_cast<int64_t>(rows) * columns; }
};

// One level of the grid; sides that a stride does not divide are rounded up.
Cells cells(const DecodeSpec& spec, int stride) {
  return {(spec.input_height + stride - 1) / stride, (spec.input_width + stride - 1) / stride};
}

int64_t all_cells(const DecodeSpec& spec) {
  if (spec.strides.empty() || spec.input_height < 1 || spec.input_width < 1)
    fail(spec.kind + ": the decode spec needs strides and input_hw to place the grid; give both");
  int64_t count = 0;
  for (int stride : spec.strides) count += cells(spec, stride).count();
  return count;
}

// (1, N, channels), (1, channels, N) or (1, channels, H, W) as rows of channels.
struct Rows {
  OutputView view;
  int64_t count = -1;
};

Rows rows_of(const Ports& ports, int output, int64_t channels) {
  const std::vector<int64_t>& d = ports[static_cast<size_t>(output)].dims;
  if (d.size() == 4 && d[0] == 1 && d[1] == channels) return {{output, 0, 1, d[2] * d[3]}, d[2] * d[3]};
  if (d.size() != 3 || d[0] != 1) return {};
  if (d[2] == channels) return {{output, 0, channels, 1}, d[1]};
  if (d[1] == channels) return {{output, 0, 1, d[2]}, d[2]};
  return {};
}

OutputView from_channel(OutputView view, int64_t channel) {
  view.offset += channel * view.channel_step;
  return view;
}

// The rows in the order of the strides, by their number; empty where they do not fit.
std::vector<Rows> by_level(std::vector<Rows> left, const DecodeSpec& spec) {
  std::vector<Rows> levels;
  for (int stride : spec.strides) {
    auto match = std::find_if(left.begin(), left.end(), [&](const Rows& r) { return r.count == cells(spec, stride).count(); });
    if (match == left.end()) return {};
    levels.push_back(*match);
    left.erase(match);
  }
  return left.empty() ? levels : std::vector<Rows>();
}

// One array of all cells cut into levels.
std::vector<Rows> cut(const Rows& whole, const DecodeSpec& spec) {
  std::vector<Rows> levels;
  int64_t first = 0;
  for (int stride : spec.strides) {
    Rows part = whole;
    part.count = cells(spec, stride).count();
    part.view.offset += first * part.view.row_step;
    first += part.count;
    levels.push_back(part);
  }
  return levels;
}

Level on_grid(const DecodeSpec& spec, int stride, const Heads& heads) {
  Level level;
  const Cells grid = cells(spec, stride);
  level.rows = grid.count();
  level.columns = grid.columns;
  level.grid_rows = grid.rows;
  level.stride = static_cast<float>(stride);
  level.first = heads.levels.empty() ? 0 : heads.levels.back().first + heads.levels.back().rows;
  return level;
}

// x, y, w, h, objectness, classes in one row.
void set_columns(Level* level, const OutputView& view) {
  level->box = view;
  level->objectness = from_channel(view, 4);
  level->classes = from_channel(view, 5);
}

void find_decoded_rows(const DecodeSpec& spec, const Ports& ports, const Chosen& chosen, Heads* heads) {
  const int64_t channels = 5 + spec.num_classes;
  Chosen match;
  for (int i : chosen) {
    const auto& d = ports[static_cast<size_t>(i)].dims;
    if (d.size() == 3 && d[0] == 1 && d[2] == channels) match.push_back(i);
  }
  if (match.size() != 1) refuse_outputs(spec, ports, chosen, "one of (1, N, " + std::to_string(channels) + ")");
  Level level;
  level.rows = ports[static_cast<size_t>(match[0])].dims[1];
  set_columns(&level, {match[0], 0, channels, 1});
  heads->box = BoxForm::cxcywh;
  heads->levels.push_back(level);
}

void find_yolox(const DecodeSpec& spec, const Ports& ports, const Chosen& chosen, Heads* heads) {
  heads->box = BoxForm::yolox;
  const int64_t channels = 5 + spec.num_classes, count = all_cells(spec);
  const std::string wanted = "(1, " + std::to_string(count) + ", " + std::to_string(channels) + ")";
  std::vector<Rows> parts;
  for (int i : chosen) {
    Rows rows = rows_of(ports, i, channels);
    if (rows.count >= 0) parts.push_back(rows);
  }
  const bool whole = parts.size() == 1 && parts[0].count == count;
  const std::vector<Rows> levels = whole ? cut(parts[0], spec) : by_level(parts, spec);
  if (levels.empty() || (!whole && parts.size() != chosen.size())) refuse_outputs(spec, ports, chosen, wanted);
  for (size_t k = 0; k < levels.size(); ++k) {
    Level level = on_grid(spec, spec.strides[k], *heads);
    set_columns(&level, levels[k].view);
    heads->levels.push_back(level);
  }
}

void find_anchors(const DecodeSpec& spec, const Ports& ports, const Chosen& chosen, Heads* heads) {
  const int64_t channels = 5 + spec.num_classes;
  all_cells(spec);
  bool given = spec.anchors.size() == spec.strides.size();
  for (const auto& level : spec.anchors) given = given && !level.empty();
  if (!given)
    fail(spec.kind + ": " + std::to_string(spec.anchors.size()) + " levels of anchors and " + std::to_string(spec.strides.size()) +
         " strides do not match; give the anchors of each stride");
  Chosen left = chosen;
  std::string wanted;
  bool complete = true;
  for (size_t k = 0; k < spec.strides.size(); ++k) {
    const Cells grid = cells(spec, spec.strides[k]);
    const int64_t anchors = static_cast<int64_t>(spec.anchors[k].size());
    const std::vector<int64_t> planes = {1, anchors * channels, grid.rows, grid.columns}, rows = {1, anchors, grid.rows, grid.columns, channels};
    wanted += (k ? "; " : "") + shape_text(planes) + " or " + shape_text(rows);
    auto match = std::find_if(left.begin(), left.end(), [&](int i) {
      const auto& d = ports[static_cast<size_t>(i)].dims;
      return d == planes || d == rows;
    });
    complete = complete && match != left.end();
    if (!complete) continue;
    const bool planar = ports[static_cast<size_t>(*match)].dims.size() == 4;
    for (int64_t a = 0; a < anchors; ++a) {
      Level level = on_grid(spec, spec.strides[k], *heads);
      level.anchor_w = spec.anchors[k][static_cast<size_t>(a)].first;
      level.anchor_h = spec.anchors[k][static_cast<size_t>(a)].second;
      set_columns(&level, {*match, a * channels * grid.count(), planar ? 1 : channels, planar ? grid.count() : 1});
      heads->levels.push_back(level);
    }
    left.erase(match);
  }
  if (!complete || !left.empty()) refuse_outputs(spec, ports, chosen, wanted);
}

void find_yolov8(const DecodeSpec& spec, const Ports& ports, const Chosen& chosen, Heads* heads) {
  const int64_t channels = 4 + spec.num_classes;
  Chosen match;
  for (int i : chosen) {
    const auto& d = ports[static_cast<size_t>(i)].dims;
    if (d.size() == 3 && d[0] == 1 && (d[1] == channels || d[2] == channels)) match.push_back(i);
  }
  const std::string c = std::to_string(channels);
  if (match.size() != 1) refuse_outputs(spec, ports, chosen, "one of (1, " + c + ", N) or (1, N, " + c + ")");
  const auto& d = ports[static_cast<size_t>(match[0])].dims;
  const bool planar = d[1] == channels;
  Level level;
  level.rows = planar ? d[2] : d[1];
  level.box = {match[0], 0, planar ? 1 : channels, planar ? level.rows : 1};
  level.classes = from_channel(level.box, 4);
  heads->box = BoxForm::cxcywh;
  heads->levels.push_back(level);
}

void find_distances(const DecodeSpec& spec, const Ports& ports, const Chosen& chosen, Heads* heads) {
  heads->box = BoxForm::distances;
  heads->cell_offset = spec.kind == "dfl" ? 0.5f : 0.0f;
  const int64_t classes = spec.num_classes, distances = 4 * (int64_t(spec.reg_max) + 1), count = all_cells(spec);
  std::string strides;
  for (int stride : spec.strides) strides += (strides.empty() ? "" : ", ") + std::to_string(stride);
  const std::string wanted = "(1, " + std::to_string(count) + ", " + std::to_string(classes + distances) + "), or for each of the strides (" + strides +
                             ") a class map with " + std::to_string(classes) + " and a distance map with " + std::to_string(distances) + " channels";
  std::vector<Rows> of_classes, of_distances;
  if (chosen.size() == 1) {
    const Rows rows = rows_of(ports, chosen[0], classes + distances);
    if (rows.count != count) refuse_outputs(spec, ports, chosen, wanted);
    of_classes = of_distances = cut(rows, spec);
    for (Rows& part : of_distances) part.view = from_channel(part.view, classes);
  } else {
    const bool alike = classes == distances;
    if (alike && spec.outputs.empty())
      fail(spec.kind + ": class maps and distance maps both have " + std::to_string(classes) +
           " channels and cannot be told apart; name them in `outputs`, all class maps first");
    for (size_t k = 0; k < chosen.size(); ++k) {
      const bool first_half = k < chosen.size() / 2;
      const Rows c = rows_of(ports, chosen[k], classes), d = rows_of(ports, chosen[k], distances);
      if (c.count >= 0 && (!alike || first_half)) of_classes.push_back(c);
      if (d.count >= 0 && (!alike || !first_half)) of_distances.push_back(d);
    }
    of_classes = by_level(of_classes, spec);
    of_distances = by_level(of_distances, spec);
    if (of_classes.empty() || of_distances.empty() || chosen.size() != 2 * spec.strides.size()) refuse_outputs(spec, ports, chosen, wanted);
  }
  for (size_t k = 0; k < spec.strides.size(); ++k) {
    Level level = on_grid(spec, spec.strides[k], *heads);
    level.classes = of_classes[k].view;
    level.box = of_distances[k].view;
    heads->levels.push_back(level);
  }
}

void find_fastestdet(const DecodeSpec& spec, const Ports& ports, const Chosen& chosen, Heads* heads) {
  const int64_t channels = 5 + spec.num_classes;
  const std::vector<int64_t> d = chosen.size() == 1 ? ports[static_cast<size_t>(chosen[0])].dims : std::vector<int64_t>();
  if (d.size() != 4 || d[0] != 1 || d[1] != channels) refuse_outputs(spec, ports, chosen, "one of (1, " + std::to_string(channels) + ", H, W)");
  Level level;
  level.rows = d[2] * d[3];
  level.grid_rows = static_cast<int>(d[2]);
  level.columns = static_cast<int>(d[3]);
  level.objectness = {chosen[0], 0, 1, level.rows};
  level.box = from_channel(level.objectness, 1);
  level.classes = from_channel(level.objectness, 5);
  heads->box = BoxForm::fastestdet;
  heads->score = ScoreForm::powers;
  heads->levels.push_back(level);
}

}  // namespace

std::vector<int> choose_outputs(const DecodeSpec& spec, const Ports& ports) {
  Chosen chosen;
  std::string have;
  for (const OutputPort& port : ports) have += (have.empty() ? "" : ", ") + port.name;
  for (const std::string& name : spec.outputs) {
    auto match = std::find_if(ports.begin(), ports.end(), [&](const OutputPort& port) { return port.name == name; });
    if (match == ports.end()) fail("there is no output '" + name + "'; the decode spec may name " + have);
    chosen.push_back(static_cast<int>(match - ports.begin()));
  }
  if (spec.outputs.empty())
    for (size_t i = 0; i < ports.size(); ++i) chosen.push_back(static_cast<int>(i));
  return chosen;
}

int64_t OutputPort::count() const {
  int64_t n = 1;
  for (int64_t d : dims) n *= d;
  return n;
}

void refuse_outputs(const DecodeSpec& spec, const Ports& ports, const Chosen& chosen, const std::string& wanted) {
  std::string have;
  for (int i : chosen) {
    const OutputPort& port = ports[static_cast<size_t>(i)];
    have += (have.empty() ? "output '" : ", '") + port.name + "' has shape " + shape_text(port.dims);
  }
  fail(spec.kind + ": " + (have.empty() ? "there is no output" : have) + ", but expected " + wanted + "; check the decode spec");
}

void require_input_size(const DecodeSpec& spec, const Heads& heads) {
  const bool as_they_are = heads.box == BoxForm::cxcywh || heads.box == BoxForm::xyxy || heads.box == BoxForm::yxyx;
  if (as_they_are && spec.normalized && (spec.input_height < 1 || spec.input_width < 1))
    fail(spec.kind + ": normalized boxes need input_hw to become pixels; give it in the decode spec");
}

Heads find_heads(const DecodeSpec& spec, const Ports& ports) {
  const std::string kinds = "yolox, yolov5, yolov3, yolov8, dfl, nanodet_plus, fastestdet, ssd";
  const Chosen chosen = choose_outputs(spec, ports);
  const std::string& kind = spec.kind;
  if (kind == "ssd") {
    if (spec.num_classes < 1) fail("ssd: num_classes is 0; say how many classes the network scores");
    return find_ssd(spec, ports, chosen);
  }
  Heads heads;
  void (*find)(const DecodeSpec&, const Ports&, const Chosen&, Heads*) = nullptr;
  const bool objectness = kind == "yolox" || kind == "yolov5" || kind == "yolov3";
  if (objectness) heads.score = ScoreForm::product;
  if (objectness && spec.decoded) find = find_decoded_rows;
  else if (kind == "yolox") find = find_yolox;
  else if (objectness) find = find_anchors, heads.box = kind == "yolov5" ? BoxForm::yolov5 : BoxForm::yolov3;
  else if (kind == "yolov8") find = find_yolov8;
  else if (kind == "dfl" || kind == "nanodet_plus") find = find_distances;
  else if (kind == "fastestdet") find = find_fastestdet;
  if (!find) fail("kind '" + kind + "' does not decode to boxes" + (kind == "classify" ? "; use classify" : "; use one of " + kinds));
  if (spec.num_classes < 1) fail(kind + ": num_classes is 0; say how many classes the network scores");
  heads.best_class_only = kind == "yolox" || kind == "fastestdet";
  find(spec, ports, chosen, &heads);
  require_input_size(spec, heads);
  return heads;
}

}  // namespace rw
