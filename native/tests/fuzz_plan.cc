// Damages plan files and loads them on every kernel path; what is accepted is run, and given an image where it has a task.
// Nothing may crash, hang, or touch memory outside: built with -fsanitize=address,undefined (make sanitize), inputs, outputs,
// images and the file lie in blocks of exactly their size.
//
//     fuzz_plan 10000 1 a.rwp b.rwp ...       iterations, seed, plans
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>

#include <unistd.h>

#include "detect/detector.h"
#include "engine/cpu.h"
#include "engine/session.h"

namespace {

using File = std::vector<uint8_t>;
using Random = std::mt19937_64;

constexpr double kLongestNs = 3e6;   // of a run, by the engine's own estimate: hostile sizes may be valid and slow
constexpr int kLargeOften = 16;      // real networks take longer: one in so many that are accepted is run
constexpr unsigned kHangs = 300;     // seconds

struct Original {
  File file;
  double cost = 0;   // the largest of all paths
};

struct Counts {
  int64_t refused = 0, run = 0, slow = 0, images = 0, taskless = 0;
};

uint64_t below(Random& random, uint64_t n) { return random() % n; }

template <class T>
void put(File& file, size_t at, T value) {
  if (at + sizeof(T) <= file.size()) std::memcpy(file.data() + at, &value, sizeof(T));
}

uint64_t get64(const File& file, size_t at) {
  uint64_t v;
  std::memcpy(&v, file.data() + at, 8);
  return v;
}

void seal(File& file, bool size) {
  if (file.size() < 128) return;
  if (size) put<uint64_t>(file, 8, file.size());
  put<uint32_t>(file, 16, rw::crc32({file.data() + 20, file.size() - 20}));
}

int32_t hostile(Random& random) {
  static const int32_t values[] = {0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 65535, 1 << 20, 1 << 28, INT32_MAX, INT32_MIN, 0x7f800000, 0x7fc00000, 0x3f800000};
  return values[below(random, sizeof values / sizeof *values)];
}

// Where the records are, so that they are hit more often than weights.
size_t place(const File& file, Random& random) {
  const size_t data = get64(file, 72), tensors = get64(file, 32), ops = get64(file, 48), ports = get64(file, 56);
  const size_t starts[] = {20, tensors, ops, ports}, ends[] = {128, ops > tensors ? ops : data, ports > ops ? ports : data, data};
  const auto k = below(random, 6);
  if (k >= 4 || ends[k] <= starts[k] || ends[k] > file.size()) return below(random, file.size());
  return starts[k] + below(random, ends[k] - starts[k]);
}

void damage(File& file, Random& random) {
  const int edits = 1 + static_cast<int>(below(random, 4));
  const auto kind = below(random, 10);
  for (int i = 0; i < edits; i++) {
    const size_t at = place(file, random);
    if (kind < 4) file[at] ^= uint8_t(1 << below(random, 8));
    else if (kind < 7) put<int32_t>(file, at & ~size_t(3), hostile(random));
    else if (kind < 8) put<int32_t>(file, at & ~size_t(3), *reinterpret_cast<const int32_t*>(file.data() + (at & ~size_t(3)) % (file.size() - 4) / 4 * 4) + static_cast<int32_t>(below(random, 5)) - 2);
    else file[at] = static_cast<uint8_t>(random());
  }
  if (below(random, 10) == 0) file.resize(below(random, file.size()));
  if (below(random, 20) == 0) file.resize(file.size() + below(random, 300));
  if (below(random, 8) != 0) seal(file, below(random, 2) == 0 || file.size() == get64(file, 8));
}

// Another number for one that the task's text holds, or a line more or less. The text is the last part of a file.
void damage_text(File& file, Random& random) {
  const size_t at = get64(file, 88);
  std::string text(file.begin() + static_cast<int64_t>(at), file.end());
  static const char* words[] = {"0", "-1", "1", "7", "65536", "2147483647", "-2147483648", "99999999999999999999", "1e38", "nan", "inf", "", " ", "\t", "\n", ",", "x", "yolov5", "ssd", "dfl", "classify"};
  for (uint64_t k = 1 + below(random, 2); k; k--) {
    size_t from = below(random, text.size()), to = from;
    while (to < text.size() && !std::strchr("0123456789.", text[to])) to++;   // the next number
    if (to < text.size()) from = to;
    while (to < text.size() && std::strchr("0123456789.", text[to])) to++;
    text.replace(from, to - from, words[below(random, sizeof words / sizeof *words)]);
    if (text.empty()) break;
  }
  file.resize(at);
  file.insert(file.end(), text.begin(), text.end());
  put<uint32_t>(file, 96, static_cast<uint32_t>(text.size()));
  seal(file, true);
}

bool has_text(const File& file) {
  const uint64_t at = get64(file, 88), bytes = get64(file, 96) & 0xffffffff;
  return bytes > 0 && at + bytes == file.size();
}

// Finds objects in a small image, or its class.
void look(rw::Session& session, Random& random, Counts& counts) {
  const int h = 1 + static_cast<int>(below(random, 60)), w = 1 + static_cast<int>(below(random, 60));
  const int64_t row = 3 * w + static_cast<int64_t>(below(random, 5));
  std::unique_ptr<uint8_t[]> image(new uint8_t[static_cast<size_t>((h - 1) * row + 3 * w)]);
  for (int64_t i = 0; i < (h - 1) * row + 3 * w; i++) image[i] = static_cast<uint8_t>(random());
  try {
    rw::Detector detector(session);
    std::vector<rw::Detection> found;
    std::vector<float> probabilities;
    if (detector.is_classifier()) detector.classify({image.get(), h, w, row}, &probabilities);
    else detector.detect({image.get(), h, w, row}, detector.limits(), &found);
    for (const auto& d : found)
      if (!(d.x1 >= 0 && d.y1 >= 0 && d.x2 <= float(w) && d.y2 <= float(h) && d.label >= 0)) std::abort();
    counts.images++;
  } catch (const rw::Error& error) {
    if (std::strlen(error.what()) < 10) std::abort();
    counts.taskless++;
  }
}

// Loads, and runs unless that would take longer than `budget` nanoseconds. Returns the estimate, or -1 where it is refused.
double attempt(const File& damaged, rw::Isa isa, double budget, Random& random, Counts& counts) {
  // Neither more bytes than the file has, nor aligned ones.
  const size_t shift = below(random, 2);
  std::unique_ptr<uint8_t[]> block(new uint8_t[damaged.size() + shift]);
  std::memcpy(block.get() + shift, damaged.data(), damaged.size());
  rw::Options options;
  options.threads = 1;
  options.isa = rw::isa_name(isa);
  options.memory_limit = 64 << 20;
  static const int winograd[] = {-1, -1, 0, 2, 4};
  options.winograd = winograd[below(random, 5)];
  std::unique_ptr<rw::Session> session;
  try {
    session = std::make_unique<rw::Session>(rw::Bytes{block.get() + shift, damaged.size()}, options);
  } catch (const rw::Error& error) {
    if (std::strlen(error.what()) < 10) std::abort();
    counts.refused++;
    return -1;
  }
  block.reset();   // the file is not needed afterwards
  int64_t elements = 0;
  for (const auto* ports : {&session->inputs(), &session->outputs()})
    for (const auto& port : *ports) elements += port.count();
  if (session->cost() > budget || elements > 1 << 22) {
    counts.slow++;
    return session->cost();
  }
  std::vector<std::unique_ptr<float[]>> arrays;
  std::vector<const float*> inputs;
  std::vector<float*> outputs;
  std::normal_distribution<float> normal(0, 100);
  for (const auto& port : session->inputs()) {
    arrays.emplace_back(new float[static_cast<size_t>(port.count())]);
    for (int64_t i = 0; i < port.count(); i++) arrays.back()[i] = i % 97 == 5 ? NAN : i % 89 == 7 ? 1e30f : normal(random);
    inputs.push_back(arrays.back().get());
  }
  for (const auto& port : session->outputs()) {
    arrays.emplace_back(new float[static_cast<size_t>(port.count())]());
    outputs.push_back(arrays.back().get());
  }
  session->run(inputs.data(), outputs.data());
  counts.run++;
  if (!session->text().empty()) look(*session, random, counts);
  return session->cost();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: fuzz_plan iterations seed plan...\n");
    return 2;
  }
  const auto isas = rw::available_isas();
  std::vector<Original> originals(static_cast<size_t>(argc - 3));
  Counts counts;
  for (int i = 3; i < argc; i++) {
    Original& original = originals[static_cast<size_t>(i - 3)];
    std::ifstream stream(argv[i], std::ios::binary);
    original.file.assign(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
    Random random(1);
    for (rw::Isa isa : isas) {
      const double cost = original.file.size() < 128 ? -1 : attempt(original.file, isa, HUGE_VAL, random, counts);
      if (cost < 0) {
        std::fprintf(stderr, "%s is not a valid plan to begin with\n", argv[i]);
        return 1;
      }
      original.cost = std::max(original.cost, cost);
    }
  }
  std::printf("%zu whole plans on %zu paths: %lld images, %lld with no task or one that needs Python\n", originals.size(), isas.size(),
              static_cast<long long>(counts.images), static_cast<long long>(counts.taskless));
  std::fflush(stdout);
  const int iterations = std::atoi(argv[1]);
  const uint64_t seed = std::strtoull(argv[2], nullptr, 10);
  counts = {};
  for (int i = 0; i < iterations; i++) {
    Random random(seed * 1000003 + static_cast<uint64_t>(i));
    const Original& original = originals[static_cast<size_t>(i) % originals.size()];
    File file = original.file;
    if (has_text(file) && below(random, 5) == 0) damage_text(file, random);
    else damage(file, random);
    const bool large = original.cost > kLongestNs;
    const double budget = !large ? kLongestNs : below(random, kLargeOften) == 0 ? original.cost * 1.5 : 0;
    if (std::getenv("FUZZ_VERBOSE")) std::fprintf(stderr, "%d\n", i);
    for (rw::Isa isa : isas) {
      ::alarm(kHangs);   // ends the program
      attempt(file, isa, budget, random, counts);
    }
  }
  std::printf("%d damaged plans on %zu paths: %lld refused, %lld run, %lld accepted and too large to run; %lld images looked at, %lld tasks refused\n",
              iterations, isas.size(), static_cast<long long>(counts.refused), static_cast<long long>(counts.run),
              static_cast<long long>(counts.slow), static_cast<long long>(counts.images), static_cast<long long>(counts.taskless));
  return counts.run > 0 && counts.refused > 0 ? 0 : 1;
}
