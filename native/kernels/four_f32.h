// Four vectors side by side, with the operators and functions of one (simd_f32.h).
//
// The functions of float_math.h are one long chain of dependent operations. Written over `Four`, four chains come interleaved,
// which the CPU overlaps better than chains that follow each other: SiLU takes 2.7 ns instead of 3.6 ns per vector (Zen 5).
#pragma once
#include "simd_f32.h"

namespace rw {
namespace {

struct Four { V v[4]; };
struct FourBits { Bits v[4]; };


#define RW_EACH(type, expression) type{{[&](int i) { return expression; }(0), [&](int i) { return expression; }(1), \
                                        [&](int i) { return expression; }(2), [&](int i) { return expression; }(3)}}
#define RW_OPERATOR(op)                                                                             \
  RW_INLINE Four operator op(const Four& a, const Four& b) { return RW_EACH(Four, a.v[i] op b.v[i]); } \
  RW_INLINE Four operator op(const Four& a, V b) { return RW_EACH(Four, a.v[i] op b); }              \
  RW_INLINE Four operator op(V a, const Four& b) { return RW_EACH(Four, a op b.v[i]); }
RW_OPERATOR(+)
RW_OPERATOR(-)
RW_OPERATOR(*)
RW_OPERATOR(/)
#undef RW_OPERATOR

RW_INLINE Four greatest(V lo, const Four& x) { return RW_EACH(Four, greatest(lo, x.v[i])); }
RW_INLINE Four least(V hi, const Four& x) { return RW_EACH(Four, least(hi, x.v[i])); }
RW_INLINE Four clamped(const Four& x, float lo, float hi) { return least(set(hi), greatest(set(lo), x)); }
RW_INLINE Four root(const Four& x) { return RW_EACH(Four, root(x.v[i])); }
RW_INLINE Four if_less(V a, const Four& b, const Four& yes, const Four& no) { return RW_EACH(Four, if_less(a, b.v[i], yes.v[i], no.v[i])); }
RW_INLINE FourBits bits(const Four& x) { return RW_EACH(FourBits, bits(x.v[i])); }
RW_INLINE Four floats(const FourBits& x) { return RW_EACH(Four, floats(x.v[i])); }
RW_INLINE Four converted(const FourBits& x) { return RW_EACH(Four, converted(x.v[i])); }
RW_INLINE FourBits plus(const FourBits& a, const FourBits& b) { return RW_EACH(FourBits, plus(a.v[i], b.v[i])); }
RW_INLINE FourBits minus(const FourBits& a, const FourBits& b) { return RW_EACH(FourBits, minus(a.v[i], b.v[i])); }
RW_INLINE FourBits minus(const FourBits& a, Bits b) { return RW_EACH(FourBits, minus(a.v[i], b)); }
RW_INLINE FourBits both(const FourBits& a, Bits b) { return RW_EACH(FourBits, both(a.v[i], b)); }
RW_INLINE FourBits differ(const FourBits& a, Bits b) { return RW_EACH(FourBits, differ(a.v[i], b)); }
RW_INLINE FourBits up23(const FourBits& a) { return RW_EACH(FourBits, up23(a.v[i])); }
RW_INLINE FourBits down23(const FourBits& a) { return RW_EACH(FourBits, down23(a.v[i])); }
#undef RW_EACH

}  // namespace
}  // namespace rw
