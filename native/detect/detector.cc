#include "detect/detector.h"

#include <string>

#include "engine/error.h"

namespace rw {
namespace {

Task task_of(const Session& session) {
  Task task;
  std::string error;
  if (!parse_task(session.text().data(), session.text().size(), &task, &error)) fail(error);
  if (task.decode.kind.empty() || task.preprocess.height < 1)
    fail("the plan has no task, so images cannot be prepared for it; lower a model whose task is known, or run it with arrays");
  if (task.decode.kind == "raw") fail("the plan's task is 'raw', whose outputs are not interpreted; run it with arrays");
  return task;
}

std::vector<OutputPort> ports_of(const Session& session) {
  std::vector<OutputPort> ports;
  for (const Port& port : session.outputs()) ports.push_back({port.name, port.dims});
  return ports;
}

std::string text_of(const std::vector<int64_t>& dims) {
  std::string text;
  for (int64_t d : dims) text += (text.empty() ? "" : "x") + std::to_string(d);
  return text;
}

void run_chunks(void* self, int chunks, void (*function)(void*, int, int), void* context) {
  static_cast<Session*>(self)->parallel(chunks, function, context);
}

}  // namespace

Detector::Detector(Session& session) : session_(session), task_(task_of(session)), letterbox_(task_.preprocess, kernels(session.isa())) {
  check_input();
  const std::vector<OutputPort> ports = ports_of(session);
  if (task_.decode.kind == "classify") classifier_ = std::make_unique<Classifier>(task_.decode, ports);
  else finish_ = std::make_unique<Finish>(task_.decode, ports, kernels(session.isa()));
  const Preprocess& p = task_.preprocess;
  const InputCodes* codes = session.input_codes();
  if (codes && codes->image.h == p.height && codes->image.w == p.width && codes->image.c == p.channels()) {
    codes_ = letterbox_.codes(codes->scale, codes->zero);
  } else {
    levels_ = letterbox_.levels();
    input_.resize(static_cast<size_t>(session.inputs()[0].count()));
  }
  for (const OutputPort& port : ports) outputs_.emplace_back(static_cast<size_t>(port.count()));
  for (auto& output : outputs_) output_pointers_.push_back(output.data());
}

void Detector::check_input() const {
  const Preprocess& p = task_.preprocess;
  if (session_.inputs().size() != 1) fail("the plan has " + std::to_string(session_.inputs().size()) + " inputs; a detector takes one image");
  const int64_t h = p.height, w = p.width, c = p.channels();
  const std::vector<int64_t> wanted = p.nhwc ? std::vector<int64_t>{1, h, w, c} : std::vector<int64_t>{1, c, h, w};
  const Port& port = session_.inputs()[0];
  if (port.dims != wanted) fail("input '" + port.name + "' is " + text_of(port.dims) + ", but the plan's task makes " + text_of(wanted) + "; write the plan again");
}

void Detector::require(bool classifier) const {
  if (classifier == is_classifier()) return;
  fail(classifier ? "the plan's task is '" + task_.decode.kind + "', which finds boxes; use detect" : "the plan's task is 'classify', which finds no boxes; use classify");
}

void Detector::run(const float* input) { session_.run(&input, output_pointers_.data()); }

const Geometry& Detector::run(const Picture& image) {
  const Parallel parallel = {session_.threads(), run_chunks, &session_};
  if (codes_.empty()) {
    const Geometry& geometry = letterbox_.write_floats(image, levels_.data(), input_.data(), parallel);
    run(input_.data());
    return geometry;
  }
  const Geometry& geometry = letterbox_.write_codes(image, codes_.data(), session_.input_codes()->image, parallel);
  session_.run_from_codes(output_pointers_.data());
  return geometry;
}

void Detector::finish(const Limits& limits, const Geometry& geometry, std::vector<Detection>* found) {
  *found = finish_->run(output_pointers_.data(), limits, &geometry);
}

void Detector::detect(const Picture& image, const Limits& limits, std::vector<Detection>* found) {
  require(false);
  std::lock_guard<std::recursive_mutex> guard(session_.mutex());
  finish(limits, run(image), found);
}

void Detector::detect(const float* input, const Geometry& geometry, const Limits& limits, std::vector<Detection>* found) {
  require(false);
  std::lock_guard<std::recursive_mutex> guard(session_.mutex());
  run(input);
  finish(limits, geometry, found);
}

void Detector::classify(const Picture& image, std::vector<float>* probabilities) {
  require(true);
  std::lock_guard<std::recursive_mutex> guard(session_.mutex());
  run(image);
  *probabilities = classifier_->run(output_pointers_.data());
}

void Detector::classify(const float* input, std::vector<float>* probabilities) {
  require(true);
  std::lock_guard<std::recursive_mutex> guard(session_.mutex());
  run(input);
  *probabilities = classifier_->run(output_pointers_.data());
}

}  // namespace rw
