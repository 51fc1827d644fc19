// Counts every allocation of the process, C++ or C: loading may allocate, running must not, from the second frame on.
// Also prints what loading takes and how much memory is resident.
//
//     allocations a.rwp ...
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
      rw_free(model);
    }
  return failed;
}
