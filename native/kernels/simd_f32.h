// A vector of floats of the widest kind that the including file may use, and the handful of functions the float kernels
// are written in. Each kernel is one template text (conv_f32.h, ...), compiled once per path from *_portable.cc, *_avx2.cc
// and *_avx512vnni.cc. Everything is in an anonymous namespace: a function compiled for AVX-512 must never be the one
// the linker keeps for a CPU without it.
//
// V is a compiler vector type, so + - * / are written as such; each rounds on its own (-ffp-contract=off). `fused` is the
// only multiply-add, used where docs/engine.md allows any order: sums of products.
//
// `greatest(lo, x)` and `least(hi, x)` give x where either is NaN, so that a NaN is passed on; lo and hi are no NaN.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__) || defined(__AVX2__)
// gcc 12 takes the don't-care operand of its own intrinsics for an uninitialized variable (gcc bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#define RW_INLINE static inline __attribute__((always_inline))

namespace rw {
namespace {

#if defined(__AVX512F__)

using V = __m512;
using Bits = __m512i;
using Mask = __mmask16;
constexpr int W = 16;

RW_INLINE Mask first(int n) { return static_cast<Mask>((1u << n) - 1); }  // n in 0..16
RW_INLINE V load(const float* p) { return _mm512_loadu_ps(p); }
RW_INLINE V load(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
RW_INLINE void store(float* p, V v) { _mm512_storeu_ps(p, v); }
RW_INLINE void store(float* p, V v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
RW_INLINE V set(float x) { return _mm512_set1_ps(x); }
RW_INLINE V fused(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
RW_INLINE V greatest(V lo, V x) { return _mm512_max_ps(lo, x); }
RW_INLINE V least(V hi, V x) { return _mm512_min_ps(hi, x); }
RW_INLINE V root(V x) { return _mm512_sqrt_ps(x); }
RW_INLINE Bits bits(V x) { return _mm512_castps_si512(x); }
RW_INLINE V floats(Bits x) { return _mm512_castsi512_ps(x); }
RW_INLINE Bits whole(int32_t x) { return _mm512_set1_epi32(x); }
RW_INLINE Bits both(Bits a, Bits b) { return _mm512_and_si512(a, b); }
RW_INLINE Bits differ(Bits a, Bits b) { return _mm512_xor_si512(a, b); }
RW_INLINE Bits minus(Bits a, Bits b) { return _mm512_sub_epi32(a, b); }
RW_INLINE Bits plus(Bits a, Bits b) { return _mm512_add_epi32(a, b); }
RW_INLINE Bits down23(Bits a) { return _mm512_srai_epi32(a, 23); }  // arithmetic
RW_INLINE Bits up23(Bits a) { return _mm512_slli_epi32(a, 23); }
RW_INLINE V converted(Bits a) { return _mm512_cvtepi32_ps(a); }
RW_INLINE V if_less(V a, V b, V yes, V no) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes); }
RW_INLINE V if_nan(V a, V yes, V no) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), no, yes); }

#elif defined(__AVX2__)

using V = __m256;
using Bits = __m256i;
constexpr int W = 8;
constexpr int32_t kFirst[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

RW_INLINE __m256i first(int n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kFirst + 8 - n)); }
RW_INLINE V load(const float* p) { return _mm256_loadu_ps(p); }
RW_INLINE V load(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
RW_INLINE void store(float* p, V v) { _mm256_storeu_ps(p, v); }
RW_INLINE void store(float* p, V v, int n) { _mm256_maskstore_ps(p, first(n), v); }
RW_INLINE V set(float x) { return _mm256_set1_ps(x); }
RW_INLINE V fused(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
RW_INLINE V greatest(V lo, V x) { return _mm256_max_ps(lo, x); }
RW_INLINE V least(V hi, V x) { return _mm256_min_ps(hi, x); }
RW_INLINE V root(V x) { return _mm256_sqrt_ps(x); }
RW_INLINE Bits bits(V x) { return _mm256_castps_si256(x); }
RW_INLINE V floats(Bits x) { return _mm256_castsi256_ps(x); }
RW_INLINE Bits whole(int32_t x) { return _mm256_set1_epi32(x); }
RW_INLINE Bits both(Bits a, Bits b) { return _mm256_and_si256(a, b); }
RW_INLINE Bits differ(Bits a, Bits b) { return _mm256_xor_si256(a, b); }
RW_INLINE Bits minus(Bits a, Bits b) { return _mm256_sub_epi32(a, b); }
RW_INLINE Bits plus(Bits a, Bits b) { return _mm256_add_epi32(a, b); }
RW_INLINE Bits down23(Bits a) { return _mm256_srai_epi32(a, 23); }
RW_INLINE Bits up23(Bits a) { return _mm256_slli_epi32(a, 23); }
RW_INLINE V converted(Bits a) { return _mm256_cvtepi32_ps(a); }
RW_INLINE V if_less(V a, V b, V yes, V no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
RW_INLINE V if_nan(V a, V yes, V no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }

#else  // four lanes in plain compiler vectors: SSE2, NEON, or whatever the machine has

typedef float V __attribute__((vector_size(16)));
typedef int32_t Bits __attribute__((vector_size(16)));
typedef uint32_t UnsignedBits __attribute__((vector_size(16)));
constexpr int W = 4;

RW_INLINE V load(const float* p) { V v; memcpy(&v, p, sizeof v); return v; }
RW_INLINE V load(const float* p, int n) {
  if (n == W) return load(p);
  V v = {0, 0, 0, 0};
  for (int i = 0; i < n; i++) v[i] = p[i];
  return v;
}
RW_INLINE void store(float* p, V v) { memcpy(p, &v, sizeof v); }
RW_INLINE void store(float* p, V v, int n) {
  if (n == W) return store(p, v);
  for (int i = 0; i < n; i++) p[i] = v[i];
}
RW_INLINE V set(float x) { return V{x, x, x, x}; }
RW_INLINE Bits bits(V x) { Bits b; memcpy(&b, &x, sizeof b); return b; }
RW_INLINE V floats(Bits x) { V v; memcpy(&v, &x, sizeof v); return v; }
RW_INLINE V chosen(Bits mask, V yes, V no) { return floats((mask & bits(yes)) | (~mask & bits(no))); }
RW_INLINE V fused(V a, V b, V c) { return a * b + c; }
RW_INLINE V greatest(V lo, V x) { return chosen(lo > x, lo, x); }
RW_INLINE V least(V hi, V x) { return chosen(hi < x, hi, x); }
RW_INLINE V root(V x) { return V{__builtin_sqrtf(x[0]), __builtin_sqrtf(x[1]), __builtin_sqrtf(x[2]), __builtin_sqrtf(x[3])}; }
RW_INLINE Bits whole(int32_t x) { return Bits{x, x, x, x}; }
RW_INLINE Bits both(Bits a, Bits b) { return a & b; }
RW_INLINE Bits differ(Bits a, Bits b) { return a ^ b; }
RW_INLINE Bits minus(Bits a, Bits b) { return (Bits)((UnsignedBits)a - (UnsignedBits)b); }
RW_INLINE Bits plus(Bits a, Bits b) { return (Bits)((UnsignedBits)a + (UnsignedBits)b); }
RW_INLINE Bits down23(Bits a) { return a >> 23; }
RW_INLINE Bits up23(Bits a) { return (Bits)((UnsignedBits)a << 23); }
RW_INLINE V converted(Bits a) {
  return V{static_cast<float>(a[0]), static_cast<float>(a[1]), static_cast<float>(a[2]), static_cast<float>(a[3])};
}
RW_INLINE V if_less(V a, V b, V yes, V no) { return chosen(a < b, yes, no); }
RW_INLINE V if_nan(V a, V yes, V no) { return chosen(a == a, no, yes); }

#endif

RW_INLINE V clamped(V x, float lo, float hi) { return least(set(hi), greatest(set(lo), x)); }

RW_INLINE int smaller(int a, int b) { return a < b ? a : b; }
RW_INLINE int larger(int a, int b) { return a > b ? a : b; }

// 0, 1, .., N-1 as a pack: arrays of vectors indexed by constants stay in registers, arrays indexed by a loop often do not.
template <int... I> struct Indices {};
template <int N, int... I> struct UpTo : UpTo<N - 1, N - 1, I...> {};
template <int... I> struct UpTo<0, I...> { using type = Indices<I...>; };

}  // namespace
}  // namespace rw
