#include "engine/cpu.h"

#include <cstdlib>
#include <thread>

#include "engine/error.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(ROADWORTHY_X86)
#include <cpuid.h>
#endif

namespace rw {
namespace {

#if defined(ROADWORTHY_X86)
uint64_t saved_states() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

struct Found {
  bool avx2 = false, avx512vnni = false;
};

Found detect() {
  Found found;
  unsigned a, b, c, d, a7, b7, c7, d7;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !__get_cpuid_count(7, 0, &a7, &b7, &c7, &d7)) return found;
  const auto has = [](unsigned word, int bit) { return (word >> bit & 1) != 0; };
  const bool osxsave = has(c, 27), fma = has(c, 12), f16c = has(c, 29);
  if (!osxsave) return found;
  // The CPU may have registers that the operating system does not save.
  const uint64_t states = saved_states();
  const bool ymm = (states & 0x06) == 0x06, zmm = (states & 0xE6) == 0xE6;
  found.avx2 = ymm && fma && f16c && has(b7, 5) && has(b7, 8);
  const bool f = has(b7, 16), dq = has(b7, 17), bw = has(b7, 30), vl = has(b7, 31), vbmi = has(c7, 1), vnni = has(c7, 11);
  found.avx512vnni = found.avx2 && zmm && f && dq && bw && vl && vbmi && vnni;
  return found;
}
#endif

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2: return "avx2";
    case Isa::avx512vnni: return "avx512vnni";
    default: return "portable";
  }
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas{Isa::portable};
#if defined(ROADWORTHY_X86)
  static const Found found = detect();
  if (found.avx2) isas.push_back(Isa::avx2);
  if (found.avx512vnni) isas.push_back(Isa::avx512vnni);
#endif
  return isas;
}

Isa choose_isa(const std::string& name) {
  std::string wanted = name;
  if (wanted.empty())
    if (const char* forced = std::getenv("ROADWORTHY_ISA")) wanted = forced;
  const auto isas = available_isas();
  if (wanted.empty()) return isas.back();
  std::string list;
  for (Isa isa : isas) {
    if (wanted == isa_name(isa)) return isa;
    list += std::string(list.empty() ? "" : ", ") + isa_name(isa);
  }
  fail("The instruction set `" + wanted + "` is not available here; choose one of " + list + ".");
}

int available_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  return cores > 0 ? cores : 1;
}

}  // namespace rw
