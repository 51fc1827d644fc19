// The peak of AVX-512: vpdpbusd on codes (64 multiply-adds an instruction), vfmadd on floats. The loop is written out,
// since gcc 12 keeps an array of accumulators in memory, which halves the figure.
#include <immintrin.h>

#include "kernels.h"

namespace rw {
namespace {

constexpr int kChains = 20;

// One instruction on each of 20 independent accumulators, zmm2..zmm21.
#define ROADWORTHY_CHAINS(op)                                                                                    \
  op " %%zmm0, %%zmm1, %%zmm2\n\t" op " %%zmm0, %%zmm1, %%zmm3\n\t" op " %%zmm0, %%zmm1, %%zmm4\n\t"             \
  op " %%zmm0, %%zmm1, %%zmm5\n\t" op " %%zmm0, %%zmm1, %%zmm6\n\t" op " %%zmm0, %%zmm1, %%zmm7\n\t"             \
  op " %%zmm0, %%zmm1, %%zmm8\n\t" op " %%zmm0, %%zmm1, %%zmm9\n\t" op " %%zmm0, %%zmm1, %%zmm10\n\t"            \
  op " %%zmm0, %%zmm1, %%zmm11\n\t" op " %%zmm0, %%zmm1, %%zmm12\n\t" op " %%zmm0, %%zmm1, %%zmm13\n\t"          \
  op " %%zmm0, %%zmm1, %%zmm14\n\t" op " %%zmm0, %%zmm1, %%zmm15\n\t" op " %%zmm0, %%zmm1, %%zmm16\n\t"          \
  op " %%zmm0, %%zmm1, %%zmm17\n\t" op " %%zmm0, %%zmm1, %%zmm18\n\t" op " %%zmm0, %%zmm1, %%zmm19\n\t"          \
  op " %%zmm0, %%zmm1, %%zmm20\n\t" op " %%zmm0, %%zmm1, %%zmm21\n\t"
#define ROADWORTHY_REGISTERS                                                                                       \
  "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", "zmm13", \
      "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20", "zmm21", "cc"
// All registers start at zero: no float becomes denormal or infinite.
#define ROADWORTHY_CLEAR                                                                                            \
  "vpxord %%zmm0, %%zmm0, %%zmm0\n\tvpxord %%zmm1, %%zmm1, %%zmm1\n\tvpxord %%zmm2, %%zmm2, %%zmm2\n\t"               \
  "vmovdqa64 %%zmm2, %%zmm3\n\tvmovdqa64 %%zmm2, %%zmm4\n\tvmovdqa64 %%zmm2, %%zmm5\n\tvmovdqa64 %%zmm2, %%zmm6\n\t"  \
  "vmovdqa64 %%zmm2, %%zmm7\n\tvmovdqa64 %%zmm2, %%zmm8\n\tvmovdqa64 %%zmm2, %%zmm9\n\tvmovdqa64 %%zmm2, %%zmm10\n\t" \
  "vmovdqa64 %%zmm2, %%zmm11\n\tvmovdqa64 %%zmm2, %%zmm12\n\tvmovdqa64 %%zmm2, %%zmm13\n\t"                           \
  "vmovdqa64 %%zmm2, %%zmm14\n\tvmovdqa64 %%zmm2, %%zmm15\n\tvmovdqa64 %%zmm2, %%zmm16\n\t"                           \
  "vmovdqa64 %%zmm2, %%zmm17\n\tvmovdqa64 %%zmm2, %%zmm18\n\tvmovdqa64 %%zmm2, %%zmm19\n\t"                           \
  "vmovdqa64 %%zmm2, %%zmm20\n\tvmovdqa64 %%zmm2, %%zmm21\n\t"

int64_t int8_ops(int64_t rounds) {
  int64_t left = rounds;
  asm volatile(ROADWORTHY_CLEAR "1:\n\t" ROADWORTHY_CHAINS("vpdpbusd") "dec %0\n\tjg 1b" : "+r"(left) : : ROADWORTHY_REGISTERS);
  return rounds * kChains * 64 * 2;
}

int64_t float_ops(int64_t rounds) {
  int64_t left = rounds;
  asm volatile(ROADWORTHY_CLEAR "1:\n\t" ROADWORTHY_CHAINS("vfmadd231ps") "dec %0\n\tjg 1b" : "+r"(left) : : ROADWORTHY_REGISTERS);
  return rounds * kChains * 16 * 2;
}

}  // namespace

extern const PeakKernel peak_avx512vnni = {int8_ops, float_ops};

}  // namespace rw
