// The Python module roadworthy._native: the only file that knows Python. Errors arrive there as ValueError with the sentence.
#include <new>
#include <mutex>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "detect/detector.h"
#include "detect/task.h"
#include "engine/cpu.h"
#include "engine/session.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Array = nb::ndarray<const float, nb::numpy, nb::c_contig, nb::device::cpu>;
using Result = nb::ndarray<nb::numpy, float>;
using Ports = std::vector<std::tuple<std::string, std::vector<int64_t>>>;

Ports ports_of(const std::vector<rw::Port>& ports) {
  Ports result;
  for (const auto& port : ports) result.emplace_back(port.name, port.dims);
  return result;
}

std::string shape_text(const std::vector<int64_t>& dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); i++) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}

std::vector<const float*> pointers_of(const rw::Session& session, const std::vector<Array>& inputs) {
  const auto& ports = session.inputs();
  if (inputs.size() != ports.size())
    rw::fail("The network has " + std::to_string(ports.size()) + " inputs, but " + std::to_string(inputs.size()) + " arrays were given.");
  std::vector<const float*> pointers;
  for (size_t i = 0; i < inputs.size(); i++) {
    std::vector<int64_t> dims;
    for (size_t d = 0; d < inputs[i].ndim(); d++) dims.push_back(static_cast<int64_t>(inputs[i].shape(d)));
    if (dims != ports[i].dims)
      rw::fail("Input `" + ports[i].name + "` has shape " + shape_text(dims) + "; the network takes " + shape_text(ports[i].dims) + ".");
    pointers.push_back(inputs[i].data());
  }
  return pointers;
}

// Memory of results that their last owner has dropped, kept for the next run: fresh memory costs a page fault for every
// 4 KB, which is a twentieth of a frame. Each block begins with its size.
class Spare {
 public:
  static float* take(size_t floats) {
    const size_t bytes = kHead + floats * sizeof(float);
    {
      const std::lock_guard<std::mutex> lock(mutex());
      auto& kept = blocks();
      for (size_t k = 0; k < kept.size(); ++k) {
        if (size_of(kept[k]) != bytes) continue;
        void* block = kept[k];
        kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(k));
        held() -= bytes;
        return data_of(block);
      }
    }
    void* block = ::operator new(bytes, std::align_val_t{kHead});
    *static_cast<size_t*>(block) = bytes;
    return data_of(block);
  }

  static void give(void* data) noexcept {
    void* block = static_cast<char*>(data) - kHead;
    const std::lock_guard<std::mutex> lock(mutex());
    if (blocks().size() < kBlocks && held() + size_of(block) <= kBytes) {
      held() += size_of(block);
      blocks().push_back(block);
    } else {
      ::operator delete(block, std::align_val_t{kHead});
    }
  }

 private:
  static constexpr size_t kHead = 64, kBlocks = 16, kBytes = size_t{32} << 20;

  static size_t size_of(const void* block) { return *static_cast<const size_t*>(block); }
  static float* data_of(void* block) { return reinterpret_cast<float*>(static_cast<char*>(block) + kHead); }
  // Never destroyed: arrays may outlive everything else in the process.
  static std::mutex& mutex() { static auto* const m = new std::mutex; return *m; }
  static size_t& held() { static size_t bytes = 0; return bytes; }
  static std::vector<void*>& blocks() {
    static auto* const kept = [] { auto* v = new std::vector<void*>; v->reserve(kBlocks); return v; }();
    return *kept;
  }
};

struct Results {
  std::vector<Result> arrays;
  std::vector<float*> pointers;

  explicit Results(const std::vector<rw::Port>& ports) {
    for (const auto& port : ports) {
      float* data = Spare::take(static_cast<size_t>(port.count()));
      nb::capsule owner(data, [](void* p) noexcept { Spare::give(p); });
      const std::vector<size_t> shape(port.dims.begin(), port.dims.end());
      arrays.emplace_back(data, shape.size(), shape.data(), owner);
      pointers.push_back(data);
    }
  }
};

std::vector<Result> run(rw::Session& session, const std::vector<Array>& inputs) {
  const auto pointers = pointers_of(session, inputs);
  Results results(session.outputs());
  {
    nb::gil_scoped_release release;
    session.run(pointers.data(), results.pointers.data());
  }
  return std::move(results.arrays);
}

using Profile = std::vector<std::tuple<std::string, std::string, double, int64_t>>;

Profile profile(rw::Session& session, const std::vector<Array>& inputs, int repeats) {
  const auto pointers = pointers_of(session, inputs);
  Results results(session.outputs());
  std::vector<rw::OpTime> times;
  {
    nb::gil_scoped_release release;
    times = session.profile(pointers.data(), results.pointers.data(), repeats);
  }
  Profile rows;
  for (const auto& t : times) rows.emplace_back(t.name, t.code, t.median_ns, t.macs);
  return rows;
}

// Detection (native/detect).

using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Changed = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Labels = nb::ndarray<const int32_t, nb::c_contig, nb::device::cpu>;

template <class T>
nb::ndarray<nb::numpy, T> owned(const T* from, std::vector<size_t> shape) {
  size_t n = 1;
  for (size_t s : shape) n *= s;
  T* data = new T[n ? n : 1];
  if (n) std::memcpy(data, from, n * sizeof(T));
  return nb::ndarray<nb::numpy, T>(data, shape.size(), shape.data(), nb::capsule(data, [](void* p) noexcept { delete[] static_cast<T*>(p); }));
}

nb::ndarray<nb::numpy, int32_t> nms(Floats boxes, Floats scores, std::optional<Labels> labels, double iou_threshold, float score_threshold,
                                    int64_t max_detections, const std::string& isa) {
  const size_t n = scores.size();
  if (boxes.size() != 4 * n || (labels && labels->size() != n) || n > 0x7fffffff) rw::fail("boxes, scores and labels differ in number");
  thread_local std::map<rw::Isa, rw::Nms> pool;  // working memory of this thread, by instruction set
  const rw::Isa chosen = rw::choose_isa(isa);
  auto found = pool.find(chosen);
  if (found == pool.end()) found = pool.emplace(chosen, rw::Nms(rw::kernels(chosen))).first;
  const std::vector<int32_t>* kept;
  {
    nb::gil_scoped_release release;
    kept = &found->second.run(boxes.data(), scores.data(), labels ? labels->data() : nullptr, static_cast<int64_t>(n),
                              {iou_threshold, score_threshold, max_detections});
  }
  return owned(kept->data(), {kept->size()});
}

using Bytes3 = nb::ndarray<const uint8_t, nb::ndim<3>, nb::device::cpu>;

rw::Picture picture(const Bytes3& image) {
  if (image.shape(2) != 3 || image.stride(2) != 1 || image.stride(1) != 3 || image.stride(0) < int64_t(3 * image.shape(1)))
    rw::fail("an image must be uint8 of shape (height, width, 3), with whole pixels side by side");
  const size_t longest = 1 << 15;
  if (image.shape(0) > longest || image.shape(1) > longest) rw::fail("an image has a side of more than 32768 pixels; make it smaller");
  return {image.data(), static_cast<int>(image.shape(0)), static_cast<int>(image.shape(1)), image.stride(0)};
}

rw::Task task_of(const std::string& text) {
  rw::Task task;
  std::string error;
  if (!rw::parse_task(text.data(), text.size(), &task, &error)) rw::fail(error);
  return task;
}

// Preprocessing alone, for tests and benchmarks.
class Preparation {
 public:
  Preparation(const std::string& text, const std::string& isa)
      : task_(task_of(text)), letterbox_(task_.preprocess, rw::kernels(rw::choose_isa(isa))), levels_(letterbox_.levels()) {
    if (!task_.preprocess.height) rw::fail("the task has no size_hw");
  }

  nb::tuple floats(const Bytes3& image) {
    const rw::Preprocess& p = task_.preprocess;
    const size_t h = static_cast<size_t>(p.height), w = static_cast<size_t>(p.width), c = static_cast<size_t>(p.channels());
    std::vector<float> out(h * w * c);
    const rw::Geometry g = letterbox_.write_floats(picture(image), levels_.data(), out.data(), {});
    return nb::make_tuple(owned(out.data(), p.nhwc ? std::vector<size_t>{1, h, w, c} : std::vector<size_t>{1, c, h, w}), geometry(g));
  }

  // Codes in pixels of `pixel` bytes; the bytes between pixels are 0.
  nb::tuple codes(const Bytes3& image, const std::vector<float>& scale, const std::vector<int32_t>& zero, int64_t pixel, int repeats) {
    const rw::Preprocess& p = task_.preprocess;
    const size_t c = static_cast<size_t>(p.channels());
    if (pixel < p.channels() || (scale.size() != 1 && scale.size() != c) || (zero.size() != 1 && zero.size() != c)) rw::fail("codes: wrong sizes");
    std::vector<uint8_t> out(static_cast<size_t>(p.height * pixel * p.width));
    const std::vector<uint8_t> tables = letterbox_.codes(scale, zero);
    const rw::Image to = {out.data(), p.width * pixel, pixel, p.height, p.width, p.channels()};
    const rw::Picture from = picture(image);
    rw::Geometry g;
    std::vector<double> us;
    for (int i = 0; i < repeats; ++i) {
      const auto start = std::chrono::steady_clock::now();
      g = letterbox_.write_codes(from, tables.data(), to, {});
      us.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
    }
    std::sort(us.begin(), us.end());
    return nb::make_tuple(owned(out.data(), {static_cast<size_t>(p.height), static_cast<size_t>(p.width), static_cast<size_t>(pixel)}),
                          geometry(g), us[us.size() / 2]);
  }

 private:
  static nb::tuple geometry(const rw::Geometry& g) {
    return nb::make_tuple(nb::make_tuple(g.ratio_x, g.ratio_y), nb::make_tuple(g.offset_x, g.offset_y), nb::make_tuple(g.height, g.width));
  }

  rw::Task task_;
  rw::Letterbox letterbox_;
  std::vector<float> levels_;
};

nb::tuple detections(const std::vector<rw::Detection>& found) {
  std::vector<float> boxes, scores;
  std::vector<int64_t> classes;
  for (const rw::Detection& d : found) {
    boxes.insert(boxes.end(), {d.x1, d.y1, d.x2, d.y2});
    scores.push_back(d.score);
    classes.push_back(d.label);
  }
  return nb::make_tuple(owned(boxes.data(), {found.size(), 4}), owned(scores.data(), {found.size()}), owned(classes.data(), {found.size()}));
}

// Decoding and NMS alone, for tests and benchmarks.
class Finishing {
 public:
  Finishing(const std::string& text, const std::vector<std::string>& names, const std::vector<std::vector<int64_t>>& shapes, const std::string& isa)
      : ports_(make_ports(names, shapes)), finish_(task_of(text).decode, ports_, rw::kernels(rw::choose_isa(isa))) {}

  nb::tuple run(const std::vector<Floats>& outputs, float score_threshold, double iou_threshold, int64_t max_detections, int repeats) {
    if (outputs.size() != ports_.size()) rw::fail("as many outputs as ports are needed");
    std::vector<const float*> data;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (static_cast<int64_t>(outputs[i].size()) != ports_[i].count()) rw::fail("output '" + ports_[i].name + "' has another size than its port");
      data.push_back(outputs[i].data());
    }
    const std::vector<rw::Detection>* found = nullptr;
    std::vector<double> us;
    for (int i = 0; i < repeats; ++i) {
      const auto start = std::chrono::steady_clock::now();
      found = &finish_.run(data.data(), {score_threshold, iou_threshold, max_detections}, nullptr);
      us.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
    }
    std::sort(us.begin(), us.end());
    return nb::make_tuple(detections(*found), us[us.size() / 2]);
  }

 private:
  static std::vector<rw::OutputPort> make_ports(const std::vector<std::string>& names, const std::vector<std::vector<int64_t>>& shapes) {
    if (names.size() != shapes.size()) rw::fail("as many names as shapes are needed");
    std::vector<rw::OutputPort> ports;
    for (size_t i = 0; i < names.size(); ++i) ports.push_back({names[i], shapes[i]});
    return ports;
  }

  std::vector<rw::OutputPort> ports_;
  rw::Finish finish_;
};

using Tensor = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

// A session of its own with a detector on it.
class ImageSession {
 public:
  ImageSession(const rw::Bytes& file, const rw::Options& options) : session_(file, options), detector_(session_) {}

  nb::tuple detect(const Bytes3& image, const rw::Limits& limits) {
    const rw::Picture from = picture(image);
    std::vector<rw::Detection> found;
    {
      nb::gil_scoped_release release;
      detector_.detect(from, limits, &found);
    }
    return detections(found);
  }

  // tensor: prepared elsewhere. The image lies in it by input_xy = image_xy * ratio + offset.
  nb::tuple detect_tensor(const Tensor& tensor, std::pair<double, double> ratio_xy, std::pair<double, double> offset_xy, std::pair<int, int> image_hw,
                          const rw::Limits& limits) {
    check(tensor);
    const rw::Geometry geometry = {ratio_xy.first, ratio_xy.second, offset_xy.first, offset_xy.second, image_hw.first, image_hw.second};
    std::vector<rw::Detection> found;
    {
      nb::gil_scoped_release release;
      detector_.detect(tensor.data(), geometry, limits, &found);
    }
    return detections(found);
  }

  nb::object classify(const Bytes3& image) {
    const rw::Picture from = picture(image);
    std::vector<float> found;
    {
      nb::gil_scoped_release release;
      detector_.classify(from, &found);
    }
    return nb::cast(owned(found.data(), {found.size()}));
  }

  nb::object classify_tensor(const Tensor& tensor) {
    check(tensor);
    std::vector<float> found;
    {
      nb::gil_scoped_release release;
      detector_.classify(tensor.data(), &found);
    }
    return nb::cast(owned(found.data(), {found.size()}));
  }

  const rw::Session& session() const { return session_; }
  const rw::Detector& detector() const { return detector_; }

 private:
  void check(const Tensor& tensor) const {
    if (static_cast<int64_t>(tensor.size()) != session_.inputs()[0].count()) rw::fail("the tensor has another size than the network's input");
  }

  rw::Session session_;
  rw::Detector detector_;
};

void bind_detect(nb::module_& m) {
  m.def("nms", &nms, nb::arg("boxes"), nb::arg("scores"), nb::arg("labels").none(), nb::arg("iou_threshold"), nb::arg("score_threshold"),
        nb::arg("max_detections"), nb::arg("isa") = "");
  nb::class_<Preparation>(m, "Preparation")
      .def(nb::init<const std::string&, const std::string&>(), nb::arg("task"), nb::arg("isa") = "")
      .def("floats", &Preparation::floats)
      .def("codes", &Preparation::codes, nb::arg("image"), nb::arg("scale"), nb::arg("zero"), nb::arg("pixel") = 3, nb::arg("repeats") = 1);
  nb::class_<Finishing>(m, "Finishing")
      .def(nb::init<const std::string&, const std::vector<std::string>&, const std::vector<std::vector<int64_t>>&, const std::string&>(),
           nb::arg("task"), nb::arg("names"), nb::arg("shapes"), nb::arg("isa") = "")
      .def("run", &Finishing::run, nb::arg("outputs"), nb::arg("score_threshold"), nb::arg("iou_threshold"), nb::arg("max_detections"),
           nb::arg("repeats") = 1);
  nb::class_<rw::Limits>(m, "Limits", "Score and IoU threshold, and the most detections (-1: all).")
      .def("__init__", [](rw::Limits* self, float score, double iou, int64_t most) { new (self) rw::Limits{score, iou, most}; }, "score_threshold"_a,
           "iou_threshold"_a, "max_detections"_a);
  nb::class_<ImageSession>(m, "ImageSession", "A plan with a task, from images to detections or class probabilities.")
      .def(
          "__init__",
          [](ImageSession* self, nb::bytes plan, int threads, const std::string& isa, bool pin) {
            const rw::Bytes file{static_cast<const uint8_t*>(plan.data()), plan.size()};
            rw::Options options;
            options.threads = threads;
            options.isa = isa;
            options.pin = pin;
            nb::gil_scoped_release release;
            new (self) ImageSession(file, options);
          },
          "plan"_a, "threads"_a = 0, "isa"_a = "", "pin"_a = false)
      .def("detect", &ImageSession::detect, "image"_a, "limits"_a, "(boxes, scores, classes), best first")
      .def("detect_tensor", &ImageSession::detect_tensor, "tensor"_a, "ratio_xy"_a, "offset_xy"_a, "image_hw"_a, "limits"_a)
      .def("classify", &ImageSession::classify, "image"_a)
      .def("classify_tensor", &ImageSession::classify_tensor, "tensor"_a)
      .def("supports", [](const ImageSession& s, int height, int width) { return s.detector().supports(height, width); }, "height"_a, "width"_a)
      .def_prop_ro("writes_codes", [](const ImageSession& s) { return s.detector().writes_codes(); })
      .def_prop_ro("isa", [](const ImageSession& s) { return std::string(rw::isa_name(s.session().isa())); })
      .def_prop_ro("threads", [](const ImageSession& s) { return s.session().threads(); })
      .def_prop_ro("text", [](const ImageSession& s) { return nb::bytes(s.session().text().data(), s.session().text().size()); }, "the plan's text section");
}

// Training (run/torch/fused.py): the epilogue of a layer with its constants. Its methods are safe to call from several threads at once.
class Epilogue {
 public:
  Epilogue(const std::string& kind, int unary, float a, float b, Floats m, Floats lo, Floats hi, std::optional<Floats> zero, std::optional<Floats> table,
           std::optional<Floats> poly, float poly_b, std::optional<Floats> out_scale, const std::string& slope, float k, float top, const std::string& isa)
      : kernel_(rw::kernels(rw::choose_isa(isa)).train_f32), channels_(m.size()) {
    static const std::map<std::string, rw::EpilogueKind> kinds = {{"linear", rw::EpilogueKind::linear}, {"table", rw::EpilogueKind::table},
        {"poly", rw::EpilogueKind::poly}, {"real", rw::EpilogueKind::real}, {"fine", rw::EpilogueKind::fine}};
    static const std::map<std::string, rw::SlopeKind> slopes = {{"one", rw::SlopeKind::one}, {"tanh", rw::SlopeKind::tanh}, {"fejer", rw::SlopeKind::fejer}};
    if (!kinds.count(kind) || !slopes.count(slope)) rw::fail("there is no epilogue `" + kind + "` with the slope `" + slope + "`");
    e_.kind = kinds.at(kind), e_.slope = slopes.at(slope), e_.unary = unary, e_.a = a, e_.b = b, e_.k = k, e_.top = top, e_.poly_b = poly_b;
    e_.m = keep(m, channels_), e_.lo = keep(lo, channels_), e_.hi = keep(hi, channels_);
    const bool indexed = e_.kind == rw::EpilogueKind::table || e_.kind == rw::EpilogueKind::fine, pieces = e_.kind == rw::EpilogueKind::poly;
    if (indexed != (zero && table) || pieces != (poly && out_scale) || unary < 0 || unary > 21 || (slope == "fejer" && !(k >= 1 && k <= 1000)))
      rw::fail("the constants of an epilogue do not belong to its kind");
    if (indexed) {
      e_.zero = keep(*zero, channels_), e_.table = keep(*table, table->size()), e_.entries = static_cast<int>(table->size());
      if (e_.entries < 1 || e_.entries > 65536) rw::fail("a table has " + std::to_string(e_.entries) + " entries");
    }
    if (pieces) e_.poly = keep(*poly, 96), e_.out_scale = keep(*out_scale, channels_);
  }

  void forward(Floats acc, Changed y, int64_t outer, int64_t inner) const {
    check(outer, inner, {acc.size(), y.size()});
    nb::gil_scoped_release release;
    kernel_.forward(e_, acc.data(), y.data(), outer, static_cast<int64_t>(channels_), inner);
  }

  void backward(Floats acc, Floats grad, Changed to, int64_t outer, int64_t inner, Floats s_acc, std::optional<Floats> s_out,
                std::optional<Floats> s_before, Changed slopes) const {
    check(outer, inner, {acc.size(), grad.size(), to.size()});
    const bool both = e_.kind == rw::EpilogueKind::table, linear = e_.kind == rw::EpilogueKind::linear;
    if (s_acc.size() != channels_ || (e_.kind != rw::EpilogueKind::real && !(s_out && s_out->size() == channels_)) || (both && !(s_before && s_before->size() == channels_)) ||
        slopes.size() != 3 * channels_)
      rw::fail("a scale, or its gradient, of an epilogue do not have an entry per channel");
    rw::TrainEpilogue e = e_;
    e.s_acc = s_acc.data(), e.s_out = s_out ? s_out->data() : nullptr, e.s_before = s_before ? s_before->data() : nullptr;
    nb::gil_scoped_release release;
    std::vector<double> sums(3 * channels_);
    kernel_.backward(e, acc.data(), grad.data(), to.data(), outer, static_cast<int64_t>(channels_), inner, sums.data());
    for (size_t c = 0; c < channels_; c++) {  // see run/torch/fused.py
      const double s0 = sums[c], s1 = sums[channels_ + c], s2 = sums[2 * channels_ + c], a = e.s_acc[c];
      const double out = e.s_out ? e.s_out[c] : 1.0, p = both ? e.s_before[c] : 1.0;
      slopes.data()[c] = static_cast<float>(linear ? s0 / out : both ? s0 / p : s0);
      slopes.data()[channels_ + c] = static_cast<float>(linear ? -s0 * a / (out * out) : -s1 / (out * out));
      slopes.data()[2 * channels_ + c] = static_cast<float>(both ? s2 - s0 * a / (p * p) : 0.0);
    }
  }

 private:
  const float* keep(const Floats& from, size_t n) {
    if (from.size() != n) rw::fail("a constant of an epilogue has " + std::to_string(from.size()) + " entries in place of " + std::to_string(n));
    kept_.emplace_back(from.data(), from.data() + n);
    return kept_.back().data();
  }
  void check(int64_t outer, int64_t inner, std::initializer_list<size_t> sizes) const {
    for (size_t size : sizes)
      if (outer < 0 || inner < 1 || size != static_cast<size_t>(outer) * channels_ * static_cast<size_t>(inner))
        rw::fail("an array does not have as many elements as its channels and sizes say");
  }

  const rw::TrainKernel& kernel_;
  size_t channels_;
  rw::TrainEpilogue e_{};
  std::vector<std::vector<float>> kept_;
};

void bind_train(nb::module_& m) {
  nb::class_<Epilogue>(m, "Epilogue", "A layer's epilogue in training, over float32 arrays of outer x channels x inner accumulators.")
      .def(nb::init<const std::string&, int, float, float, Floats, Floats, Floats, std::optional<Floats>, std::optional<Floats>, std::optional<Floats>,
                    float, std::optional<Floats>, const std::string&, float, float, const std::string&>(),
           "kind"_a, "unary"_a, "a"_a, "b"_a, "m"_a, "lo"_a, "hi"_a, "zero"_a.none(), "table"_a.none(), "poly"_a.none(), "poly_b"_a, "out_scale"_a.none(),
           "slope"_a, "k"_a, "top"_a, "isa"_a = "")
      .def("forward", &Epilogue::forward, "acc"_a, "y"_a, "outer"_a, "inner"_a)
      .def("backward", &Epilogue::backward, "acc"_a, "grad"_a, "to"_a, "outer"_a, "inner"_a, "s_acc"_a, "s_out"_a.none(), "s_before"_a.none(),
           "slopes"_a, "Writes the gradient of acc into `to`, those of s_acc, s_out and s_before per channel into `slopes` (3 x channels).");
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // what Python has not freed when it exits is not the user's concern
  m.doc() = "Roadworthy's engine: runs lowered int8 and float networks on the CPU.";

  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const rw::Error& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    }
  });

  nb::class_<rw::Session>(m, "Session", "A plan (docs/engine.md) that is ready to run. Calls from several threads take turns.")
      .def(
          "__init__",
          [](rw::Session* self, nb::bytes plan, int threads, const std::string& isa, bool pin, bool poison, int winograd, double chunk_ns) {
            const rw::Bytes file{static_cast<const uint8_t*>(plan.data()), plan.size()};
            const rw::Options options{threads, isa, pin, poison, winograd, chunk_ns};
            nb::gil_scoped_release release;
            new (self) rw::Session(file, options);
          },
          "plan"_a, "threads"_a = 0, "isa"_a = "", "pin"_a = false, nb::kw_only(), "poison"_a = false, "winograd"_a = -1,
          "chunk_ns"_a = 1000.0,
          "threads: 0 for every core. isa: one of isas(), empty for the best. pin: workers stay on their core.\n"
          "poison: the arena is filled with garbage before each run. winograd: 0 never, 2 or 4 that tile, -1 by the engine's rule.\n"
          "chunk_ns: how long a piece of work for one thread should take at least.")
      .def("run", &run, "inputs"_a, "float32 arrays of the inputs' shapes; returns a list of new arrays, one per output.")
      .def("profile", &profile, "inputs"_a, "repeats"_a = 20, "Per operation: (name, opcode, median nanoseconds, multiply-adds).")
      .def_prop_ro("inputs", [](const rw::Session& s) { return ports_of(s.inputs()); }, "(name, shape) of each input")
      .def_prop_ro("outputs", [](const rw::Session& s) { return ports_of(s.outputs()); }, "(name, shape) of each output")
      .def_prop_ro("text", [](const rw::Session& s) { return nb::bytes(s.text().data(), s.text().size()); }, "the plan's text section")
      .def_prop_ro("isa", [](const rw::Session& s) { return std::string(rw::isa_name(s.isa())); })
      .def_prop_ro("threads", &rw::Session::threads)
      .def_prop_ro("cost_ns", &rw::Session::cost, "a rough estimate of a run on one core")
      .def_prop_ro("arena_bytes", &rw::Session::arena_bytes)
      .def_prop_ro("weight_bytes", &rw::Session::weight_bytes);

  m.def("isas", [] {
    std::vector<std::string> names;
    for (rw::Isa isa : rw::available_isas()) names.emplace_back(rw::isa_name(isa));
    return names;
  }, "The instruction sets that this machine can run, simplest first.");

  m.def("peak_gops", [](const std::string& isa, double milliseconds) {
    const rw::PeakKernel& peak = rw::kernels(rw::choose_isa(isa)).peak;
    nb::gil_scoped_release release;
    const auto best = [&](int64_t (*kernel)(int64_t)) {
      using Clock = std::chrono::steady_clock;
      const auto end = Clock::now() + std::chrono::duration<double, std::milli>(milliseconds);
      double most = 0;
      do {
        const auto begun = Clock::now();
        const double ops = static_cast<double>(kernel(20000));
        most = std::max(most, ops / std::chrono::duration<double, std::nano>(Clock::now() - begun).count());
      } while (Clock::now() < end);
      return most;
    };
    return std::make_pair(best(peak.int8), best(peak.float32));
  }, "isa"_a = "", "milliseconds"_a = 20.0, "Most (int8, float32) operations per nanosecond that one thread reaches on registers.");

  m.def("opcodes", [] {
    nb::dict codes;
#define ROADWORTHY_OP(code, name, tensors, attributes, blobs) codes[#name] = nb::make_tuple(code, tensors, attributes, blobs);
#include "engine/opcodes.inc"
#undef ROADWORTHY_OP
    return codes;
  }, "Operation name -> (code, tensors, attributes, blobs).");

  bind_detect(m);
  bind_train(m);
}
