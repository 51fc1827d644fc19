#include "ops/conv_spec.h"

#include <algorithm>

namespace rw {
namespace {

enum Attribute { KH, KW, SH, SW, TOP, LEFT, DH, DW, CIN, COUT, EPILOGUE, LO, HI, UNARY_FN, UA, UB, POLY_B, KIND };
enum Blob { WEIGHTS, BIAS, SCALE, ZERO, TABLE, POLY, OUT_SCALE, WEIGHT_SCALE };
static_assert(KIND == kWeightKind);
enum FixedBlob { MULTIPLIER = SCALE, SHIFT = POLY, SECOND = OUT_SCALE, SECOND_ZERO = WEIGHT_SCALE };   // of the fixed-point form
constexpr int kFirstFixed = 5, kLastEpilogue = 7;
enum WeightKind { PLAIN, STORED_S8, STORED_S16 };

constexpr double kAccumulator = 2147483648.0;   // |acc| stays below: docs/engine.md
constexpr double kScaled = 1073741824.0;        // and |acc| * multiplier below this

void check_taps(const Source& s, const ConvSpec& c) {
  const auto inside = [&](int64_t out, int stride, int pad, int kernel, int dilation, int64_t in, int before, int behind) {
    const int64_t first = -int64_t(pad), last = (out - 1) * stride - pad + int64_t(kernel - 1) * dilation;
    return first >= -before && last < in + behind;
  };
  const Tensor &x = c.x.t, &y = c.y.t;
  s.require(inside(y.dims[0], c.sh, c.top, c.kh, c.dh, x.dims[0], x.border[0], x.border[2]) &&
                inside(y.dims[1], c.sw, c.left, c.kw, c.dw, x.dims[1], x.border[1], x.border[3]),
            "reads outside its input and the border around it");
}

// Kernels divide by steps and compare them, so they are positive; the step of a single row or pixel, which nobody takes, too.
void check_steps(const Source& s, View& v) {
  Tensor& t = v.t;
  if (t.dims[1] == 1 && !t.has_border()) t.strides[1] = t.dims[2];
  if (t.dims[0] == 1 && !t.has_border()) t.strides[0] = t.dims[1] * t.strides[1];
  s.require(t.strides[0] > 0 && t.strides[1] > 0, "has a tensor whose rows or pixels do not follow each other in memory");
}

// Codes that were written as indices into a palette: docs/engine.md, "Packed weights".
template <class T>
std::vector<T> unpack(const Source& s, int64_t count) {
  const Bytes blob = s.op.blobs[WEIGHTS];
  s.require(blob.size >= 4, "has packed weights without their head");
  const int bits = blob.data[0];
  uint16_t entries;
  std::memcpy(&entries, blob.data + 2, 2);
  s.require(bits >= 1 && bits <= kMostPackedBits && blob.data[1] == 0, "has packed weights of no known form");
  s.require(entries >= 1 && entries <= 1 << bits, "has packed weights whose palette does not fit their bits");
  const size_t at = (4 + entries * sizeof(T) + 3) / 4 * 4;
  const uint64_t needed = at + (static_cast<uint64_t>(count) * static_cast<uint64_t>(bits) + 7) / 8;
  if (blob.size != needed) s.refuse("has " + std::to_string(blob.size) + " bytes of packed weights and needs " + std::to_string(needed));
  s.require(static_cast<uint64_t>(count) <= s.weight_limit / sizeof(float), "takes the unpacked weights over what is allowed");
  T palette[1 << kMostPackedBits] = {};
  std::memcpy(palette, blob.data + 4, entries * sizeof(T));
  std::vector<T> codes(static_cast<size_t>(count));
  const uint8_t* p = blob.data + at;
  const uint8_t* end = blob.data + blob.size;
  const unsigned mask = (1u << bits) - 1;
  unsigned highest = 0;
  for (int64_t i = 0; i < count; i += 8, p += bits) {   // eight indices are a whole number of bytes
    uint64_t word = 0;
    std::memcpy(&word, p, std::min<size_t>(static_cast<size_t>(bits), static_cast<size_t>(end - p)));
    const int64_t n = std::min<int64_t>(8, count - i);
    for (int64_t k = 0; k < n; k++, word >>= bits) {
      const unsigned index = static_cast<unsigned>(word) & mask;
      highest = std::max(highest, index);
      codes[static_cast<size_t>(i + k)] = palette[index];
    }
    s.require(n == 8 || word == 0, "has packed weights with something behind the last");
  }
  s.require(highest < entries, "has a packed weight outside its palette");
  return codes;
}

// Weights that were stored as integers and are computed with as floats.
template <class T>
void expand(const Source& s, ConvSpec& c, int64_t count, bool packed) {
  const auto scale = s.reals(WEIGHT_SCALE, "weight scales", c.cout);
  const auto codes = packed ? unpack<T>(s, count) : s.blob<T>(WEIGHTS, "weights", count);
  c.expanded.resize(static_cast<size_t>(count));
  const int64_t per_channel = count / c.cout;
  for (int64_t i = 0; i < count; i++) c.expanded[i] = static_cast<float>(codes[i]) * scale[c.depthwise ? i % c.cout : i / per_channel];
  c.weights = c.expanded.data();
}

void read_weights(const Source& s, ConvSpec& c) {
  const int64_t count = int64_t(c.taps()) * c.cout * (c.depthwise ? 1 : c.cin);
  const int kind = s.integer(KIND, "weight kind", PLAIN, kPackedKind + STORED_S16);
  const bool packed = kind >= kPackedKind;
  const int codes = packed ? kind - kPackedKind : kind;
  s.require(codes <= STORED_S16, "has weights of no known kind");
  s.require(codes == PLAIN || !c.integer, "has stored weights, but integer input");
  s.require(!packed || codes != PLAIN || c.integer, "has packed weights that are floats");
  if (codes == STORED_S8) return expand<int8_t>(s, c, count, packed);
  if (codes == STORED_S16) return expand<int16_t>(s, c, count, packed);
  if (packed) {
    c.unpacked = unpack<int8_t>(s, count);
    c.weights = c.unpacked.data();
    return;
  }
  const Bytes blob = s.op.blobs[WEIGHTS];
  if (blob.size != static_cast<uint64_t>(count) * (c.integer ? 1 : 4))
    s.refuse("has " + std::to_string(blob.size) + " bytes of weights and needs " + std::to_string(count * (c.integer ? 1 : 4)));
  c.weights = blob.data;
  if (!c.integer && reinterpret_cast<uintptr_t>(blob.data) % alignof(float) != 0) {
    c.expanded = s.blob<float>(WEIGHTS, "weights", count);
    c.weights = c.expanded.data();
  }
}

// The largest |acc| of each channel must leave room in 32 bits, and so must its product with the multiplier.
void check_range(const Source& s, const ConvSpec& c) {
  const auto* w = static_cast<const int8_t*>(c.weights);
  const int64_t per_channel = int64_t(c.taps()) * (c.depthwise ? 1 : c.cin);
  const bool scaled = c.e.kind == EpilogueKind::linear || c.e.kind == EpilogueKind::table || c.e.kind == EpilogueKind::fine;
  for (int n = 0; n < c.cout; n++) {
    int64_t sum = 0;
    int least = 0;
    const int8_t* p = c.depthwise ? w + n : w + n * per_channel;
    const int64_t step = c.depthwise ? c.cout : 1;
    for (int64_t k = 0; k < per_channel; k++) {
      const int v = p[k * step];
      sum += v < 0 ? -v : v;
      least = std::min(least, v);
    }
    s.require(least >= -127, "has a weight of -128; -127..127 are possible");
    const double largest = 255.0 * double(sum) + std::fabs(double(c.bias[n]));
    s.require(largest < kAccumulator, "can overflow 32 bits in its sums");
    s.require(!scaled || largest * std::fabs(double(c.scale[n])) < kScaled, "can overflow 32 bits behind its multiplier");
  }
}

// The epilogues behind the kernel; the kernel itself leaves accumulators (real without a scale).
void read_fixed(const Source& s, ConvSpec& c) {
  FixedEpilogue& f = c.f;
  f = {};
  f.kind = static_cast<FixedKind>(s.op.attributes[EPILOGUE] - kFirstFixed);
  const bool table = f.kind == FixedKind::table, curve = f.kind == FixedKind::curve;
  s.require(c.integer, "computes in floats, but has the epilogue of codes");
  s.require(!c.out_float, "has an epilogue that does not give the type it writes");
  s.integer(UNARY_FN, "unary", 0, 0);
  c.bias = s.blob<int32_t>(BIAS, "biases", c.cout);
  auto multipliers = s.blob<int32_t>(MULTIPLIER, "multipliers", c.cout), shifts = s.blob<int32_t>(SHIFT, "shifts", c.cout);
  c.scales = FixedScales(s, std::move(multipliers), std::move(shifts), "multipliers");
  c.zero = s.integers(ZERO, "zero points", c.cout, curve ? INT16_MIN : 0, curve ? INT16_MAX : 255);
  f.lo = s.integer(LO, "lo", 0, 255);
  f.hi = s.integer(HI, "hi", f.lo, 255);
  if (table) c.table = s.blob<uint8_t>(TABLE, "table", 256);
  else if (curve) c.curve = s.blob<int16_t>(TABLE, "table", kCurveEntries);
  else s.blob<uint8_t>(TABLE, "table", 0);
  const auto second = s.blob<int32_t>(SECOND, "second multipliers and shifts", curve ? 2 * int64_t(c.cout) : 0);
  c.zero2 = s.integers(SECOND_ZERO, "second zero points", curve ? c.cout : 0, 0, 255);
  const auto middle = second.begin() + (curve ? c.cout : 0);
  c.scales2 = FixedScales(s, {second.begin(), middle}, {middle, second.end()}, "second multipliers");
  f.n = c.cout;
  f.m = c.scales.m.data(), f.s = c.scales.s.data(), f.zero = c.zero.data();
  f.m2 = c.scales2.m.data(), f.s2 = c.scales2.s.data(), f.zero2 = c.zero2.data();
  f.table = c.table.data(), f.curve = c.curve.data();
  c.e.kind = EpilogueKind::real;
  c.e.bias = c.bias.data();
}

void read_epilogue(const Source& s, ConvSpec& c) {
  Epilogue& e = c.e;
  e = {};
  c.fixed = s.integer(EPILOGUE, "epilogue", 0, kLastEpilogue) >= kFirstFixed;
  if (c.fixed) return read_fixed(s, c);
  e.kind = static_cast<EpilogueKind>(s.op.attributes[EPILOGUE]);
  const bool real = e.kind == EpilogueKind::real;
  s.require(c.integer || real, "computes in floats, but has the epilogue of codes");
  if (!c.integer) s.require(c.out_float, "computes in floats, but writes codes");
  s.require(real == c.out_float, "has an epilogue that does not give the type it writes");
  e.unary = s.integer(UNARY_FN, "unary", 0, kUnaryFunctions);
  e.unary_a = s.real(UA, "ua");
  e.unary_b = s.real(UB, "ub");
  const auto optional = [&](int blob) { return s.op.blobs[blob].size == 0; };
  if (!c.integer) {
    c.float_bias = s.reals(BIAS, "biases", c.cout);
    // Nothing scales a sum of floats; a kernel may read the field all the same.
    c.scale.assign(c.cout, 1.0f);
  } else {
    c.bias = s.blob<int32_t>(BIAS, "biases", c.cout);
    c.scale = s.reals(SCALE, "scales", c.cout, 1e20);
  }
  if (real) {
    c.zero.assign(c.cout, 0);
  } else {
    c.zero = s.integers(ZERO, "zero points", c.cout, 0, e.kind == EpilogueKind::fine ? kFineEntries - 1 : 255);
    e.lo = s.integer(LO, "lo", 0, 255);
    e.hi = s.integer(HI, "hi", e.lo, 255);
  }
  if (e.kind == EpilogueKind::table) c.table = s.blob<uint8_t>(TABLE, "table", 256);
  if (e.kind == EpilogueKind::fine) c.table = s.blob<uint8_t>(TABLE, "table", kFineEntries);
  if (e.kind == EpilogueKind::poly) {
    // A bound that keeps v + b a number, so that a segment is always found.
    e.poly_b = s.real(POLY_B, "poly b", 1e6);
    c.poly = s.reals(POLY, "polynomial", 96);
    c.out_scale = s.reals(OUT_SCALE, "output scales", c.cout);
  } else {
    s.require(optional(POLY) || s.op.blobs[POLY].size == 96 * 4, "has a polynomial of the wrong size");
  }
  const auto pointer = [](const auto& v) { return v.empty() ? nullptr : v.data(); };
  e.bias = pointer(c.bias);
  e.float_bias = pointer(c.float_bias);
  e.scale = pointer(c.scale);
  e.zero = pointer(c.zero);
  e.out_scale = pointer(c.out_scale);
  e.table = pointer(c.table);
  e.poly = pointer(c.poly);
}

}  // namespace

void read_conv(const Source& s, ConvSpec& c) {
  c.depthwise = s.op.code == OpCode::DEPTHWISE;
  c.integer = s.tensors[0].t.dtype == Dtype::u8;
  c.out_float = s.tensors[1].t.dtype == Dtype::f32;
  c.x = s.image(0, "x", c.integer ? Dtype::u8 : Dtype::f32);
  c.y = s.image(1, "y", c.out_float ? Dtype::f32 : Dtype::u8);
  c.kh = s.integer(KH, "kh", 1, kSize);
  c.kw = s.integer(KW, "kw", 1, kSize);
  c.sh = s.integer(SH, "sh", 1, kSize);
  c.sw = s.integer(SW, "sw", 1, kSize);
  c.top = s.integer(TOP, "pad top", -kSize, kSize);
  c.left = s.integer(LEFT, "pad left", -kSize, kSize);
  c.dh = s.integer(DH, "dh", 1, kSize);
  c.dw = s.integer(DW, "dw", 1, kSize);
  c.cin = s.integer(CIN, "cin", 1, 1 << 24);
  c.cout = s.integer(COUT, "cout", 1, 1 << 24);
  s.require(c.x.t.dims[2] == c.cin && c.y.t.dims[2] == c.cout, "has channel counts that differ from its tensors'");
  s.require(!c.depthwise || c.cin == c.cout, "is depthwise with different channel counts");
  s.require(int64_t(c.kh) * c.kw <= kSize && int64_t(c.kh) * c.kw * c.cin <= INT32_MAX, "has a kernel that is too large");
  // Kernels read up to 64 bytes further, which the memory of a caller does not have.
  s.require(c.x.t.space == Space::arena || c.x.t.space == Space::constant, "reads an input or output of the network directly");
  check_steps(s, c.x);
  check_steps(s, c.y);
  check_taps(s, c);
  read_weights(s, c);
  read_epilogue(s, c);
  if (c.integer) check_range(s, c);
}

}  // namespace rw
