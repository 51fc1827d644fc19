// The C API: every function is a call of the engine inside `guarded`, so that no exception passes the border.
#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <new>

#include "detect/detector.h"
#include "detect/task.h"
#include "engine/cpu.h"
#include "engine/file.h"
#include "engine/session.h"
#include "roadworthy.h"

#ifndef ROADWORTHY_VERSION
#define ROADWORTHY_VERSION "unknown"
#endif

struct rw_model {
  rw_model(rw::Bytes plan, const rw::Options& options) : session(plan, options) {
    read_lines();
    std::string error;
    rw::parse_task(session.text().data(), session.text().size(), &task, &error);
  }

  // key<TAB>value, one per line.
  void read_lines() {
    const std::string& text = session.text();
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find('\n', at), text.size()), tab = text.find('\t', at);
      if (tab < end) lines[text.substr(at, tab - at)] = text.substr(tab + 1, end - tab - 1);
      at = end + 1;
    }
  }

  rw::Session session;
  std::map<std::string, std::string, std::less<>> lines;
  rw::Task task;
  // Made with the first image; both under the session's mutex.
  std::unique_ptr<rw::Detector> detector;
  std::vector<rw::Detection> found;
};

namespace {

thread_local std::string last_error;

// Runs f; on failure keeps the sentence and gives `failure`.
template <class T, class F>
T guarded(T failure, F f) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    last_error = "The memory is not enough for this plan.";
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "An unknown failure.";
  }
  return failure;
}

rw::Options options_of(const rw_options* options) {
  rw::Options o;
  if (!options) return o;
  o.threads = options->threads;
  o.isa = options->isa ? options->isa : "";
  o.pin = options->pin != 0;
  return o;
}

int describe(const std::vector<rw::Port>& ports, int index, rw_port* port) {
  if (index < 0 || static_cast<size_t>(index) >= ports.size()) rw::fail("There is no input or output " + std::to_string(index) + "; there are " + std::to_string(ports.size()) + ".");
  if (!port) rw::fail("The pointer to the description is NULL.");
  const rw::Port& p = ports[index];
  port->name = p.name.c_str();
  port->rank = static_cast<int>(p.dims.size());
  for (int i = 0; i < RW_MAX_RANK; i++) port->dims[i] = i < port->rank ? p.dims[i] : 1;
  port->elements = p.count();
  return RW_OK;
}

void require(const void* pointer, const char* what) {
  if (!pointer) rw::fail(std::string("The ") + what + " is NULL.");
}

template <class T>
void check_arrays(const T* const* arrays, int count, const std::vector<rw::Port>& ports, const char* what) {
  if (count != static_cast<int>(ports.size()))
    rw::fail(std::to_string(count) + " " + what + " were given; the network has " + std::to_string(ports.size()) + ".");
  if (count) require(arrays, what);
  for (int i = 0; i < count; i++)
    if (!arrays[i]) rw::fail("The array for `" + ports[i].name + "` is NULL.");
}

}  // namespace

extern "C" {

rw_model* rw_load(const char* path, const rw_options* options) {
  return guarded(static_cast<rw_model*>(nullptr), [&] {
    require(path, "path");
    const rw::MappedFile file(path);
    return new rw_model(file.bytes(), options_of(options));
  });
}

rw_model* rw_load_memory(const void* plan, size_t bytes, const rw_options* options) {
  return guarded(static_cast<rw_model*>(nullptr), [&] {
    require(plan, "plan");
    return new rw_model({static_cast<const uint8_t*>(plan), bytes}, options_of(options));
  });
}

void rw_free(rw_model* model) { delete model; }

int rw_input_count(const rw_model* model) { return model ? static_cast<int>(model->session.inputs().size()) : 0; }
int rw_output_count(const rw_model* model) { return model ? static_cast<int>(model->session.outputs().size()) : 0; }

int rw_input(const rw_model* model, int index, rw_port* port) {
  return guarded(static_cast<int>(RW_ERROR), [&] {
    require(model, "model");
    return describe(model->session.inputs(), index, port);
  });
}

int rw_output(const rw_model* model, int index, rw_port* port) {
  return guarded(static_cast<int>(RW_ERROR), [&] {
    require(model, "model");
    return describe(model->session.outputs(), index, port);
  });
}

const char* rw_task(const rw_model* model, const char* key) {
  if (!model || !key) return nullptr;
  const auto found = model->lines.find(std::string_view(key));
  return found == model->lines.end() ? nullptr : found->second.c_str();
}

int rw_run(rw_model* model, const float* const* inputs, int input_count, float* const* outputs, int output_count) {
  return guarded(static_cast<int>(RW_ERROR), [&] {
    require(model, "model");
    check_arrays(inputs, input_count, model->session.inputs(), "inputs");
    check_arrays<float>(outputs, output_count, model->session.outputs(), "outputs");
    model->session.run(inputs, outputs);
    return static_cast<int>(RW_OK);
  });
}

int rw_detect(rw_model* model, const uint8_t* bgr, int height, int width, int64_t row_stride, rw_detection* detections, int capacity, int* count) {
  return guarded(static_cast<int>(RW_ERROR), [&] {
    require(model, "model");
    require(bgr, "image");
    require(count, "pointer to the count");
    if (capacity < 0) rw::fail("The capacity is negative.");
    if (capacity > 0) require(detections, "array of detections");
    if (height < 1 || width < 1 || height > 65535 || width > 65535) rw::fail("The image has " + std::to_string(height) + " rows and " + std::to_string(width) + " columns; 1 to 65535 are possible.");
    if (row_stride < int64_t(width) * 3) rw::fail("The row stride of the image is less than three times its width.");
    const std::lock_guard<std::recursive_mutex> guard(model->session.mutex());
    if (!model->detector) {
      model->found.reserve(rw::kCandidates);
      model->detector = std::make_unique<rw::Detector>(model->session);
    }
    model->detector->detect({bgr, height, width, row_stride}, model->detector->limits(), &model->found);
    *count = static_cast<int>(std::min(model->found.size(), static_cast<size_t>(capacity)));
    for (int i = 0; i < *count; i++) {
      const rw::Detection& d = model->found[static_cast<size_t>(i)];
      detections[i] = {d.x1, d.y1, d.x2, d.y2, d.score, d.label};
    }
    return static_cast<int>(RW_OK);
  });
}

const char* rw_class_name(const rw_model* model, int class_id) {
  if (!model || class_id < 0 || static_cast<size_t>(class_id) >= model->task.decode.class_names.size()) return nullptr;
  return model->task.decode.class_names[class_id].c_str();
}

const char* rw_isa(const rw_model* model) { return model ? rw::isa_name(model->session.isa()) : ""; }
int rw_threads(const rw_model* model) { return model ? model->session.threads() : 0; }
size_t rw_arena_bytes(const rw_model* model) { return model ? model->session.arena_bytes() : 0; }
size_t rw_weight_bytes(const rw_model* model) { return model ? model->session.weight_bytes() : 0; }

const char* rw_error(void) { return last_error.c_str(); }
const char* rw_version(void) { return ROADWORTHY_VERSION; }

}  // extern "C"
