// What a CONV or DEPTHWISE says, checked: shapes, every tap inside the border, constants that cannot overflow.
#pragma once
#include <vector>

#include "ops/fixed.h"

namespace rw {

struct ConvSpec {
  bool depthwise, integer, out_float;
  bool fixed;                         // the fixed-point form: `e` gives accumulators, `f` what becomes of them
  int kh, kw, sh, sw, top, left, dh, dw, cin, cout;
  View x, y;
  Epilogue e;                         // points into the vectors below
  FixedEpilogue f;                    // likewise
  const void* weights;                // canonical, s8 or f32: in the file, or in one of the vectors below
  std::vector<float> expanded;
  std::vector<int8_t> unpacked;
  std::vector<int32_t> bias, zero;
  std::vector<float> float_bias, scale, out_scale, poly;
  std::vector<uint8_t> table;
  FixedScales scales, scales2;        // of the fixed-point form
  std::vector<int32_t> zero2;
  std::vector<int16_t> curve;

  int taps() const { return kh * kw; }
  int64_t pixels() const { return y.t.dims[0] * y.t.dims[1]; }
  int64_t macs() const { return pixels() * taps() * (depthwise ? 1 : int64_t(cin)) * cout; }

  // The first pixel that tap (0, 0) of output pixel (0, 0) reads.
  int64_t origin() const { return x.t.offset - top * x.step(0) - left * x.step(1); }

  ConvSpec() = default;
  ConvSpec(const ConvSpec&) = delete;
  ConvSpec& operator=(const ConvSpec&) = delete;
};

void read_conv(const Source& source, ConvSpec& spec);

}  // namespace rw
