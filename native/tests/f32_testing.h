// What the float kernel tests share: the paths this CPU can run, memory with a fence behind it, a random source, counting.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/kernels.h"

namespace testing {

constexpr double kUnit = 1.0 / (1 << 24);  // half a unit in the last place of float32, relative

inline std::vector<rw::Isa> paths() {
  std::vector<rw::Isa> result = {rw::Isa::portable};
#if defined(ROADWORTHY_X86)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) result.push_back(rw::Isa::avx2);
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi")) result.push_back(rw::Isa::avx512vnni);
#endif
  return result;
}

inline const char* name(rw::Isa isa) { return isa == rw::Isa::portable ? "portable" : isa == rw::Isa::avx2 ? "avx2" : "avx512vnni"; }

inline int& failures() {
  static int count = 0;
  return count;
}

__attribute__((format(printf, 1, 2))) inline void fail(const char* format, ...) {
  if (failures()++ >= 20) return;
  va_list list;
  va_start(list, format);
  vprintf(format, list);
  va_end(list);
  printf("\n");
}

inline int finish(const char* what, long cases) {
  printf("%s: %ld cases, %d failures\n", what, cases, failures());
  return failures() ? 1 : 0;
}

struct Random {
  uint64_t state = 88172645463325252ull;
  uint32_t next() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return static_cast<uint32_t>(state >> 32);
  }
  int below(int n) { return static_cast<int>(next() % static_cast<uint32_t>(n)); }
  float real(float lo, float hi) { return lo + (hi - lo) * (static_cast<float>(next() >> 8) / 16777216.0f); }
};

// Bytes that end at a page which cannot be touched: a read or write behind the last element ends the program.
class Fenced {
 public:
  explicit Fenced(size_t bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    whole_ = (bytes + page - 1) / page * page + page;
    base_ = static_cast<uint8_t*>(mmap(nullptr, whole_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) abort();
    mprotect(base_ + whole_ - page, page, PROT_NONE);
    data_ = base_ + whole_ - page - bytes;
  }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;
  ~Fenced() { munmap(base_, whole_); }
  uint8_t* bytes() { return data_; }
  float* floats() { return reinterpret_cast<float*>(data_); }

 private:
  uint8_t *base_, *data_;
  size_t whole_;
};

class Aligned {
 public:
  explicit Aligned(size_t bytes) : data_(aligned_alloc(64, (bytes + 127) / 64 * 64)) { memset(data_, 0xa5, bytes); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  ~Aligned() { free(data_); }
  void* get() { return data_; }

 private:
  void* data_;
};

inline float sentinel() {
  const uint32_t bits = 0x7fc12345;  // a NaN that no computation gives
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline bool same_bits(float a, float b) { return memcmp(&a, &b, sizeof a) == 0; }

}  // namespace testing
