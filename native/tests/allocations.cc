// Counts every allocation of the process, C++ or C: loading may allocate, running must not, from the second frame on; where
// the plan has a task, finding objects neither, whatever the images show. Also prints what loading takes and what is resident.
//
//     allocations a.rwp ...
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "roadworthy.h"

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
}

static std::atomic<long> allocations{0};

extern "C" {
void* malloc(size_t n) { allocations++; return __libc_malloc(n); }
void* calloc(size_t n, size_t m) { allocations++; return __libc_calloc(n, m); }
void* realloc(void* p, size_t n) { allocations++; return __libc_realloc(p, n); }
void* memalign(size_t a, size_t n) { allocations++; return __libc_memalign(a, n); }
void* aligned_alloc(size_t a, size_t n) { allocations++; return __libc_memalign(a, n); }
int posix_memalign(void** p, size_t a, size_t n) { allocations++; *p = __libc_memalign(a, n); return *p ? 0 : 12; }
}

namespace {

long resident_kib(const char* key) {
  std::FILE* f = std::fopen("/proc/self/status", "r");
  if (!f) return 0;
  char line[256];
  long value = 0;
  while (std::fgets(line, sizeof line, f))
    if (std::strncmp(line, key, std::strlen(key)) == 0) value = std::atol(line + std::strlen(key) + 1);
  std::fclose(f);
  return value;
}

// Objects in images of one size: grey, then noise of more and more contrast, so that their number grows. False if that allocates.
bool images(rw_model* model, const char* path) {
  constexpr int kHeight = 123, kWidth = 211, kImages = 8, kCapacity = 300;
  static unsigned char pixels[kImages][kHeight * kWidth * 3];
  static rw_detection found[kCapacity];
  unsigned state = 1;
  for (int i = 0; i < kImages; i++)
    for (auto& value : pixels[i]) {
      state = state * 1664525u + 1013904223u;
      value = static_cast<unsigned char>(114 + (static_cast<int>(state >> 24) - 128) * i / 8);
    }
  int count = 0, most = 0;
  if (rw_detect(model, pixels[0], kHeight, kWidth, 3 * kWidth, found, kCapacity, &count) != RW_OK) return true;   // no task for boxes
  const long first = allocations.load();
  for (auto& image : pixels) {
    if (rw_detect(model, image, kHeight, kWidth, 3 * kWidth, found, kCapacity, &count) != RW_OK) return false;
    most = std::max(most, count);
  }
  const long during = allocations.load() - first;
  std::printf("%s: %ld allocations in %d images with up to %d objects\n", path, during, kImages, most);
  return during == 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (allocations.load() < 0 || argc < 2) {
    std::fprintf(stderr, "usage: allocations plan...\n");
    return 2;
  }
  int failed = 0;
  for (int p = 1; p < argc; p++)
    for (int threads = 1; threads <= 3; threads++) {
      const long before = allocations.load(), resident_before = resident_kib("VmRSS:");
      const auto start = std::chrono::steady_clock::now();
      const rw_options options{threads, nullptr, 0};
      rw_model* model = rw_load(argv[p], &options);
      if (!model) {
        std::fprintf(stderr, "%s: %s\n", argv[p], rw_error());
        return 1;
      }
      const double load_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
      if (allocations.load() == before) {
        std::fprintf(stderr, "the counter counts nothing\n");
        return 1;
      }
      std::vector<std::vector<float>> arrays;
      std::vector<const float*> inputs;
      std::vector<float*> outputs;
      arrays.reserve(64);
      for (int i = 0; i < rw_input_count(model); i++) {
        rw_port port;
        rw_input(model, i, &port);
        arrays.emplace_back(static_cast<size_t>(port.elements), 1.0f);
        inputs.push_back(arrays.back().data());
      }
      for (int i = 0; i < rw_output_count(model); i++) {
        rw_port port;
        rw_output(model, i, &port);
        arrays.emplace_back(static_cast<size_t>(port.elements));
        outputs.push_back(arrays.back().data());
      }
      const auto run = [&] { return rw_run(model, inputs.data(), static_cast<int>(inputs.size()), outputs.data(), static_cast<int>(outputs.size())); };
      if (run() != RW_OK) return 1;
      const long first = allocations.load();
      double best = 1e9;
      for (int r = 0; r < 50; r++) {
        const auto begin = std::chrono::steady_clock::now();
        if (run() != RW_OK) return 1;
        best = std::min(best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
      }
      const long during = allocations.load() - first;
      std::printf("%s, %d threads: load %.1f ms, best run %.3f ms, %ld allocations in 50 runs, resident %ld KiB (%+ld)\n", argv[p], threads, load_ms, best,
                  during, resident_kib("VmRSS:"), resident_kib("VmRSS:") - resident_before);
      if (during != 0) failed = 1;
      if (!images(model, argv[p])) failed = 1;
      rw_free(model);
    }
  return failed;
}
