// Eight threads share four models through the C API, with arrays and, where the plan has a task, with an image; every result
// must be the first one, bit for bit. Built with -fsanitize=thread (make sanitize) it also shows races.
//
//     threads 20 a.rwp b.rwp ...       runs per thread, plans
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "roadworthy.h"

namespace {

using Arrays = std::vector<std::vector<float>>;

constexpr int kThreads = 8, kModels = 4;

Arrays arrays_of(const rw_model* model, bool input) {
  Arrays arrays;
  const int count = input ? rw_input_count(model) : rw_output_count(model);
  for (int i = 0; i < count; i++) {
    rw_port port;
    (input ? rw_input : rw_output)(model, i, &port);
    arrays.emplace_back(static_cast<size_t>(port.elements));
    for (size_t k = 0; input && k < arrays.back().size(); k++) arrays.back()[k] = static_cast<float>(k * 2654435761u >> 24) - 100.0f;
  }
  return arrays;
}

Arrays run(rw_model* model, const Arrays& inputs) {
  Arrays outputs = arrays_of(model, false);
  std::vector<const float*> in;
  std::vector<float*> out;
  for (const auto& a : inputs) in.push_back(a.data());
  for (auto& a : outputs) out.push_back(a.data());
  if (rw_run(model, in.data(), static_cast<int>(in.size()), out.data(), static_cast<int>(out.size())) != RW_OK) {
    std::fprintf(stderr, "%s\n", rw_error());
    std::exit(1);
  }
  return outputs;
}

// Objects in a small image; none where the plan has no task for boxes.
std::vector<rw_detection> look(rw_model* model) {
  static const std::vector<unsigned char> pixels = [] {
    std::vector<unsigned char> p(64 * 80 * 3);
    for (size_t k = 0; k < p.size(); k++) p[k] = static_cast<unsigned char>(k * 2654435761u >> 24);
    return p;
  }();
  std::vector<rw_detection> found(50);
  int count = 0;
  if (rw_detect(model, pixels.data(), 64, 80, 3 * 80, found.data(), static_cast<int>(found.size()), &count) != RW_OK) count = 0;
  found.resize(static_cast<size_t>(count));
  return found;
}

bool same(const std::vector<rw_detection>& a, const std::vector<rw_detection>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof a[0]) == 0);
}

bool same(const Arrays& a, const Arrays& b) {
  for (size_t i = 0; i < a.size(); i++)
    if (std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0) return false;
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: threads runs plan...\n");
    return 2;
  }
  const int runs = std::atoi(argv[1]);
  for (int p = 2; p < argc; p++) {
    rw_model* models[kModels];
    for (int i = 0; i < kModels; i++) {
      const rw_options options{i + 1, nullptr, i == 3};
      models[i] = rw_load(argv[p], &options);
      if (!models[i]) {
        std::fprintf(stderr, "%s: %s\n", argv[p], rw_error());
        return 1;
      }
    }
    const Arrays inputs = arrays_of(models[0], true), expected = run(models[0], inputs);
    const auto objects = look(models[0]);
    bool right[kThreads];
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; t++)
      threads.emplace_back([&, t] {
        right[t] = true;
        for (int r = 0; r < runs; r++) {
          rw_model* model = models[(t + r) % kModels];
          right[t] = right[t] && same(run(model, inputs), expected) && same(look(model), objects);
        }
      });
    for (auto& thread : threads) thread.join();
    for (rw_model* model : models) rw_free(model);
    for (int t = 0; t < kThreads; t++)
      if (!right[t]) {
        std::fprintf(stderr, "%s: thread %d got another result\n", argv[p], t);
        return 1;
      }
    std::printf("%s: %d runs with %zu objects, all equal\n", argv[p], kThreads * runs, objects.size());
  }
  return 0;
}
