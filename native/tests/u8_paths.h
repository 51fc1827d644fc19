// What the tests of kernels on codes share: seeded draws, memory next to a forbidden page, the paths this CPU can run.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels/kernels.h"

namespace rw_test {

inline std::mt19937& source() {
  static std::mt19937 generator;
  return generator;
}

inline int draw(int lo, int hi) { return lo + static_cast<int>(source()() % static_cast<unsigned>(hi - lo + 1)); }
inline float draw_float(float lo, float hi) { return lo + (hi - lo) * static_cast<float>(source()() % 65536) / 65535.0f; }

// Random bytes whose last one lies directly in front of a page that must not be touched.
class Fenced {
 public:
  explicit Fenced(size_t bytes) : bytes_(bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), inside = (bytes + page - 1) / page * page;
    mapped_ = inside + 2 * page;
    base_ = static_cast<uint8_t*>(mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || (inside != 0 && mprotect(base_ + page, inside, PROT_READ | PROT_WRITE) != 0)) abort();
    data = base_ + page + inside - bytes;
    for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<uint8_t>(source()());
  }
  ~Fenced() { munmap(base_, mapped_); }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;
  std::vector<uint8_t> copy() const { return std::vector<uint8_t>(data, data + bytes_); }
  // The first byte that differs, or -1.
  int64_t difference(const std::vector<uint8_t>& expected) const {
    for (size_t i = 0; i < bytes_; ++i)
      if (data[i] != expected[i]) return static_cast<int64_t>(i);
    return -1;
  }
  uint8_t* data;

 private:
  uint8_t* base_;
  size_t bytes_, mapped_;
};

inline const char* name_of(rw::Isa isa) {
  return isa == rw::Isa::portable ? "portable" : isa == rw::Isa::avx2 ? "avx2" : "avx512vnni";
}

inline std::vector<rw::Isa> paths() {
  std::vector<rw::Isa> found = {rw::Isa::portable};
#if defined(ROADWORTHY_X86)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(rw::Isa::avx2);
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bw"))
    found.push_back(rw::Isa::avx512vnni);
#endif
  return found;
}

// <kernel>_on(isa): what kernels.inc names for that path. Templates, so that a test links only the kernels it asks for.
#define ROADWORTHY_KERNEL(name, type, avx2, avx512vnni)                       \
  template <class = void>                                                     \
  const rw::type& name##_on(rw::Isa isa) {                                    \
    if (isa == rw::Isa::avx2) return rw::name##_##avx2;                       \
    if (isa == rw::Isa::avx512vnni) return rw::name##_##avx512vnni;           \
    return rw::name##_portable;                                               \
  }
#include "kernels/kernels.inc"
#undef ROADWORTHY_KERNEL

}  // namespace rw_test
