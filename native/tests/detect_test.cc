// Every path of the detection kernels, and what is built of them, next to memory that must not be touched; and no allocation
// from the second image on. That the results are right is tested from Python (tests/run/native/test_detect_*.py, against OpenCV
// and NumPy); here the paths must equal the portable one, which is one of those tested there.
//
// Usage: detect_test [rounds] [seed]
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "detect/finish.h"
#include "detect/letterbox.h"
#include "detect/nms.h"
#include "engine/error.h"
#include "u8_paths.h"

namespace {

std::atomic<long> allocations{0};

}  // namespace

void* operator new(size_t n) {
  ++allocations;
  if (void* p = std::malloc(n ? n : 1)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace {

using namespace rw_test;

int failures = 0;

void check(bool right, const char* what, rw::Isa isa, const std::string& where) {
  if (right) return;
  if (++failures < 20) std::printf("%s, %s: %s\n", what, name_of(isa), where.c_str());
}

void scanning() {
  const int n = draw(0, 300);
  Fenced memory(static_cast<size_t>(n) * 4);
  float* x = reinterpret_cast<float*>(memory.data);
  for (int i = 0; i < n; ++i) x[i] = draw(0, 9) ? draw_float(-1, 1) : NAN;
  const float limit = draw(0, 5) ? draw_float(-1, 1) : draw_float(1, 2);
  std::vector<int32_t> expected;
  for (int i = 0; i < n; ++i)
    if (!(x[i] < limit)) expected.push_back(i);
  for (rw::Isa isa : paths()) {
    std::vector<int32_t> found(static_cast<size_t>(n) + 16);
    found.resize(static_cast<size_t>(scan_f32_on(isa)(x, n, limit, found.data())));
    check(found == expected, "scan", isa, std::to_string(n));
  }
}

void looking_up() {
  const int pixels = draw(0, 100), step = draw(0, 1) ? 3 : draw(3, 8);
  Fenced x(static_cast<size_t>(pixels) * 3), table(768);
  if (draw(0, 1)) std::memcpy(table.data + 256, table.data, 256), std::memcpy(table.data + 512, table.data, 256);
  const size_t bytes = pixels ? static_cast<size_t>((pixels - 1) * step + 3) : 0;
  for (rw::Isa isa : paths()) {
    Fenced y(bytes);
    std::vector<uint8_t> expected = y.copy();
    for (int i = 0; i < pixels; ++i)
      for (int c = 0; c < 3; ++c) expected[static_cast<size_t>(i * step + c)] = table.data[256 * c + x.data[3 * i + c]];
    codes_u8_on(isa)(x.data, pixels, table.data, y.data, step);
    check(y.difference(expected) < 0, "codes", isa, std::to_string(pixels) + " pixels of " + std::to_string(step));
  }
}

void blending() {
  const int n = draw(0, 200), wa = draw(0, 2048);
  Fenced a(static_cast<size_t>(n) * 2), b(static_cast<size_t>(n) * 2);
  int16_t *pa = reinterpret_cast<int16_t*>(a.data), *pb = reinterpret_cast<int16_t*>(b.data);
  for (int i = 0; i < n; ++i) pa[i] = static_cast<int16_t>(draw(0, 32640)), pb[i] = static_cast<int16_t>(draw(0, 32640));
  for (rw::Isa isa : paths()) {
    Fenced y(static_cast<size_t>(n));
    std::vector<uint8_t> expected(static_cast<size_t>(n));
    for (int i = 0; i < n; ++i)
      expected[static_cast<size_t>(i)] = static_cast<uint8_t>((pa[i] * wa / 65536 + pb[i] * (2048 - wa) / 65536 + 2) / 4);
    resize_u8_on(isa).blend(pa, pb, wa, 2048 - wa, y.data, n);
    check(y.difference(expected) < 0, "blend", isa, std::to_string(n));
  }
}

// A whole image that ends in front of a forbidden page, into an input that does.
void letterboxing() {
  rw::Preprocess p;
  p.height = draw(1, 60), p.width = draw(1, 90);
  p.resize = static_cast<rw::Resize>(draw(0, 2));
  p.anchor = static_cast<rw::Anchor>(draw(0, 1));
  p.color = static_cast<rw::Color>(draw(0, 2));
  p.mean.assign(static_cast<size_t>(p.channels()), 10.0);
  p.std.assign(static_cast<size_t>(p.channels()), 2.0);
  const int h = draw(1, 80), w = draw(0, 2) ? draw(1, 120) : p.width * draw(1, 9), gap = draw(0, 1) * draw(0, 9), pixel = draw(p.channels(), 5);
  const bool exact = draw(0, 1);  // every pixel is its own code
  const std::string where = std::to_string(h) + "x" + std::to_string(w) + " to " + std::to_string(p.height) + "x" + std::to_string(p.width);
  Fenced image(static_cast<size_t>((h - 1) * (3 * w + gap) + 3 * w));
  std::vector<uint8_t> expected;
  for (rw::Isa isa : paths()) {
    rw::Letterbox letterbox(p, rw::kernels(isa));
    const std::vector<uint8_t> tables = letterbox.codes({exact ? 0.5f : 0.7f}, {exact ? 10 : 9});  // exact: (level - 10) / 2 / 0.5 + 10
    Fenced y(static_cast<size_t>(p.height * p.width * pixel - (pixel - p.channels())));
    std::memset(y.data, 77, static_cast<size_t>(p.height * p.width * pixel - (pixel - p.channels())));
    const rw::Image out = {y.data, int64_t(p.width) * pixel, pixel, p.height, p.width, p.channels()};
    letterbox.write_codes({image.data, h, w, 3 * w + gap}, tables.data(), out, {});
    if (expected.empty()) expected = y.copy();
    check(y.difference(expected) < 0, "letterbox", isa, where);
    const long before = allocations.load();
    letterbox.write_codes({image.data, h, w, 3 * w + gap}, tables.data(), out, {});
    check(allocations.load() == before, "letterbox allocates for the second image", isa, where);
  }
}

void suppressing() {
  const int n = draw(0, 400);
  std::vector<float> boxes, scores;
  std::vector<int32_t> labels;
  for (int i = 0; i < n; ++i) {
    const float x = static_cast<float>(draw(0, 40)), y = static_cast<float>(draw(0, 40)), w = draw_float(-1, 20), h = draw_float(-1, 20);
    boxes.insert(boxes.end(), {x, y, x + w, y + h});
    scores.push_back(static_cast<float>(draw(-3, 50)) / 50);
    labels.push_back(draw(0, 2));
  }
  const rw::NmsOptions options = {draw(0, 10) / 10.0, draw(0, 1) ? 0.1f : -1.0f, draw(0, 1) ? -1 : draw(0, 30)};
  const int32_t* given = draw(0, 1) ? labels.data() : nullptr;
  std::vector<int32_t> expected;
  for (rw::Isa isa : paths()) {
    rw::Nms nms(rw::kernels(isa));
    const std::vector<int32_t> found = nms.run(boxes.data(), scores.data(), given, n, options);
    if (isa == rw::Isa::portable) expected = found;
    check(found == expected, "nms", isa, std::to_string(n));
    const long before = allocations.load();
    nms.run(boxes.data(), scores.data(), given, n, options);
    check(allocations.load() == before, "nms allocates in the second call", isa, std::to_string(n));
  }
}

// A head that ends in front of a forbidden page.
void finishing() {
  rw::DecodeSpec spec;
  const bool yolox = draw(0, 1), planar = draw(0, 1);
  spec.kind = yolox ? "yolox" : "yolov8";
  spec.num_classes = draw(1, 40);
  spec.input_height = spec.input_width = 64;
  spec.strides = {8, 16};
  spec.scores_are_logits = draw(0, 1);
  const int64_t cells = 64 + 16, channels = spec.num_classes + (yolox ? 5 : 4);
  Fenced memory(static_cast<size_t>(cells * channels) * 4);
  float* x = reinterpret_cast<float*>(memory.data);
  for (int64_t i = 0; i < cells * channels; ++i) x[i] = draw_float(0, 1);
  const std::vector<rw::OutputPort> ports = {{"o", planar ? std::vector<int64_t>{1, channels, cells} : std::vector<int64_t>{1, cells, channels}}};
  const std::string where = spec.kind + (planar ? " planes " : " rows ") + std::to_string(spec.num_classes);
  size_t expected = 0;
  for (rw::Isa isa : paths()) {
    rw::Finish finish(spec, ports, rw::kernels(isa));
    const rw::Limits limits = {0.6f, 0.5, 50};
    const size_t found = finish.run(&x, limits, nullptr).size();
    if (isa == rw::Isa::portable) expected = found;
    check(found == expected, "decode", isa, where);
    const long before = allocations.load();
    finish.run(&x, limits, nullptr);
    check(allocations.load() == before, "decoding allocates in the second call", isa, where);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 400;
  source().seed(argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1);
  try {
    for (int i = 0; i < rounds; ++i) {
      scanning();
      looking_up();
      blending();
      letterboxing();
      suppressing();
      finishing();
    }
  } catch (const rw::Error& error) {
    std::printf("refused: %s\n", error.what());
    return 1;
  }
  std::printf("detection: %d rounds on %zu paths, %d failures\n", rounds, paths().size(), failures);
  return failures != 0;
}
