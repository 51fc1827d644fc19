// One call from image to result: prepare, run, decode, suppress, back to image pixels.
//
//     Session session(file, options);
//     Detector detector(session);
//     detector.detect({bgr, height, width, row}, detector.limits(), &found);
//
// Where the plan begins by quantizing its input, the codes are written straight into that image and the operation is left out.
// Calls from several threads take turns (the session's mutex). Nothing is allocated after the first image of a size, unless
// a later one has more candidates. Errors are rw::Error.
#pragma once
#include <memory>
#include <vector>

#include "detect/finish.h"
#include "detect/letterbox.h"
#include "engine/session.h"

namespace rw {

class Detector {
 public:
  // The session must outlive the detector. Throws Error where the plan has no task, or one that does not fit the network.
  explicit Detector(Session& session);

  const Task& task() const { return task_; }
  bool is_classifier() const { return classifier_ != nullptr; }
  Limits limits() const { return limits_of(task_.decode); }  // those of the task
  bool writes_codes() const { return !codes_.empty(); }

  // Can images of this size be prepared here? If not (cubic or area interpolation), prepare the tensor and use the second form.
  bool supports(int height, int width) const { return letterbox_.supports(height, width); }

  void detect(const Picture& image, const Limits& limits, std::vector<Detection>* found);
  void detect(const float* input, const Geometry& geometry, const Limits& limits, std::vector<Detection>* found);

  // For a plan whose task is `classify`: the probability of each class.
  void classify(const Picture& image, std::vector<float>* probabilities);
  void classify(const float* input, std::vector<float>* probabilities);

 private:
  void require(bool classifier) const;
  void check_input() const;
  const Geometry& run(const Picture& image);
  void run(const float* input);
  void finish(const Limits& limits, const Geometry& geometry, std::vector<Detection>* found);

  Session& session_;
  Task task_;
  Letterbox letterbox_;
  std::unique_ptr<Finish> finish_;
  std::unique_ptr<Classifier> classifier_;
  std::vector<uint8_t> codes_;        // tables, where the input is quantized
  std::vector<float> levels_, input_; // otherwise
  std::vector<std::vector<float>> outputs_;
  std::vector<float*> output_pointers_;
};

}  // namespace rw
