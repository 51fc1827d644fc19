// Convolutions: dense (any kernel, as a sum over taps), depthwise, and Winograd for 3x3 in floats.
#include <algorithm>

#include "ops/conv_spec.h"

namespace rw {
namespace {

constexpr int64_t kPiece = 16384;   // bytes
constexpr int64_t kMostWinogradBytes = 16 << 20;  // of weights transformed for 4 x 4 outputs
constexpr int kSplit = 64;   // channels of a part: a multiple of every kernel's block

// Rough speed of one core in multiply-adds per nanosecond.
double speed(Isa isa, bool integer, bool depthwise) {
  if (isa == Isa::portable) return 2;
  const double dense = isa == Isa::avx2 ? (integer ? 60 : 30) : (integer ? 250 : 80);
  return depthwise ? dense / 8 : dense;
}

// Measured (docs/decisions/0005-winograd.md): both tiles beat the direct sum from 16 channels and 4 x 4 outputs on; the larger tile is the
// better one from 7 x 7 on, unless its weights (36 for each 9) are so many that reading them takes longer than what it saves.
// Returns the tile, or 0. The one place of this rule; Options::winograd replaces it for measurements.
int winograd_tile(const ConvSpec& c, int forced) {
  const bool possible = !c.integer && !c.depthwise && c.kh == 3 && c.kw == 3 && c.sh == 1 && c.sw == 1 && c.dh == 1 && c.dw == 1;
  if (!possible || forced == 0) return 0;
  if (forced == 2 || forced == 4) return forced;
  const int side = std::min(c.y.h(), c.y.w());
  if (std::min(c.cin, c.cout) < 16 || side < 4) return 0;
  return side >= 7 && int64_t(c.cin) * c.cout * 36 * 4 <= kMostWinogradBytes ? 4 : 2;
}

Buffer packed_buffer(const Source& s, size_t bytes, size_t taken) {
  if (bytes > s.weight_limit || taken > s.weight_limit - bytes) s.refuse("takes the packed weights over what is allowed");
  return Buffer(bytes);
}

class DenseConv : public Operation {
 public:
  DenseConv(const Source& s, const ConvSpec& c) : kernel_(c.integer ? s.kernels.conv_u8 : s.kernels.conv_f32), x_(c.x), y_(c.y), origin_(c.origin()) {
    const int64_t row = x_.step(0), pixel = x_.step(1), element = x_.t.element();
    // The taps of a row are neighbours where pixels are dense: one longer tap wastes fewer lanes.
    const bool merge = c.kw > 1 && c.dw == 1 && pixel == c.cin * element;
    shape_ = {merge ? c.kh : c.kh * c.kw, merge ? c.kw * c.cin : c.cin, c.cout, c.out_float};
    for (int ky = 0; ky < c.kh; ky++)
      for (int kx = 0; kx < (merge ? 1 : c.kw); kx++) {
        const int64_t offset = ky * c.dh * row + kx * c.dw * pixel;
        s.require(offset >= INT32_MIN && offset <= INT32_MAX, "has taps more than 2 GiB apart");
        taps_.push_back(static_cast<int32_t>(offset));
      }
    x_row_ = row * c.sh;
    x_pixel_ = pixel * c.sw;
    y_row_ = y_.step(0);
    y_pixel_ = y_.step(1);
    out_w_ = y_.w();
    const int64_t pixels = c.pixels();
    s.require(pixels <= INT32_MAX, "has too many pixels");
    if (x_row_ == x_pixel_ * out_w_ && y_row_ == y_pixel_ * out_w_) out_w_ = static_cast<int>(pixels);  // one long row

    const int64_t grains = (pixels + kernel_.tile - 1) / kernel_.tile;
    const bool split = s.threads > 1 && grains < 2 * s.threads && c.cout >= 2 * kSplit && !y_.t.has_border();
    int parts = split ? std::min(2 * s.threads, c.cout / kSplit) : 1;
    const int step = ((c.cout + parts - 1) / parts + kSplit - 1) / kSplit * kSplit;
    Epilogue epilogue = c.e;
    if (c.integer && c.out_float && c.e.unary != 0) {
      // The float kernels have their own way to apply a function; the integer one leaves it to this operation.
      unary_ = s.kernels.unary_f32;
      function_ = c.e.unary;
      a_ = c.e.unary_a;
      b_ = c.e.unary_b;
      epilogue.unary = 0;
    }
    const size_t per_channel = size_t(shape_.taps) * shape_.k * element_of_weights(c);
    for (int first = 0; first < c.cout; first += parts == 1 ? c.cout : step) {
      ConvShape shape = shape_;
      shape.n = parts == 1 ? c.cout : std::min(step, c.cout - first);
      ConvWeights weights{static_cast<const uint8_t*>(c.weights) + first * per_channel, part_of(epilogue, first)};
      Buffer packed = packed_buffer(s, kernel_.packed_bytes(shape), weight_bytes);
      kernel_.pack(shape, weights, packed.data());
      weight_bytes += packed.bytes();
      parts_.push_back({shape, first, std::move(packed)});
    }
    if (parts_.size() > 1) {
      units = static_cast<int64_t>(parts_.size());
    } else {
      units = pixels;
      grain = kernel_.tile;
      units_per_row = y_.w();
    }
    pixels_ = pixels;
    macs = c.macs();
    cost = double(macs) / speed(s.kernels.isa, c.integer, false) + double(pixels) * c.cout / 16;
  }

  void run(Bases bases, int64_t begin, int64_t end, int) override {
    ConvRun r{};
    r.x = bases[x_.base] + origin_;
    r.x_row = x_row_;
    r.x_pixel = x_pixel_;
    r.tap = taps_.data();
    r.y_row = y_row_;
    r.y_pixel = y_pixel_;
    r.out_w = out_w_;
    if (parts_.size() == 1) return run_part(bases, r, parts_[0], begin, end);
    for (int64_t i = begin; i < end; i++) run_part(bases, r, parts_[i], 0, pixels_);
  }

 private:
  struct Part {
    ConvShape shape;
    int first;          // channel
    Buffer packed;
  };

  static size_t element_of_weights(const ConvSpec& c) { return c.integer ? 1 : 4; }

  static Epilogue part_of(Epilogue e, int first) {
    if (e.bias) e.bias += first;
    if (e.float_bias) e.float_bias += first;
    if (e.scale) e.scale += first;
    if (e.zero) e.zero += first;
    if (e.out_scale) e.out_scale += first;
    return e;
  }

  void run_part(Bases bases, ConvRun r, const Part& part, int64_t begin, int64_t end) const {
    r.packed = part.packed.data();
    r.y = y_.at(bases) + part.first * y_.t.element();
    if (!unary_) return kernel_.run(part.shape, r, begin, end);
    // In pieces, so that the function finds its values in the first cache.
    const int64_t piece = std::max<int64_t>(1, kPiece / (part.shape.n * 4) / kernel_.tile) * kernel_.tile;
    for (int64_t i = begin; i < end; i += piece) {
      const int64_t last = std::min(end, i + piece);
      kernel_.run(part.shape, r, i, last);
      apply_unary(part, r, i, last);
    }
  }

  void apply_unary(const Part& part, const ConvRun& r, int64_t begin, int64_t end) const {
    const bool dense = r.y_pixel == part.shape.n * 4;
    for (int64_t i = begin; i < end;) {
      const int64_t row = i / r.out_w, run = dense ? std::min(end, (row + 1) * r.out_w) - i : 1;
      auto* y = reinterpret_cast<float*>(static_cast<uint8_t*>(r.y) + row * r.y_row + i % r.out_w * r.y_pixel);
      unary_(y, y, run * part.shape.n, function_, a_, b_);
      i += run;
    }
  }

  const ConvKernel& kernel_;
  View x_, y_;
  int64_t origin_, x_row_, x_pixel_, y_row_, y_pixel_, pixels_;
  int out_w_;
  ConvShape shape_;
  std::vector<int32_t> taps_;
  std::vector<Part> parts_;
  UnaryFn unary_ = nullptr;
  int function_ = 0;
  float a_ = 0, b_ = 0;
};

class DepthwiseConv : public Operation {
 public:
  DepthwiseConv(const Source& s, const ConvSpec& c)
      : kernel_(c.integer ? s.kernels.depthwise_u8 : s.kernels.depthwise_f32),
        shape_{c.kh, c.kw, c.sh, c.sw, c.dh, c.dw, c.cout, c.out_float}, x_(c.x), y_(c.y), origin_(c.origin()) {
    packed_ = packed_buffer(s, kernel_.packed_bytes(shape_), 0);
    kernel_.pack(shape_, {c.weights, c.e}, packed_.data());
    weight_bytes = packed_.bytes();
    units = y_.h();
    units_per_row = 1;
    macs = c.macs();
    cost = double(macs) / speed(s.kernels.isa, c.integer, true) + double(c.pixels()) * c.cout / 16;
  }

  void run(Bases bases, int64_t begin, int64_t end, int) override {
    const DepthwiseRun r{bases[x_.base] + origin_, x_.step(0), x_.step(1), packed_.data(), y_.at(bases), y_.step(0), y_.step(1), y_.h(), y_.w()};
    kernel_.run(shape_, r, static_cast<int>(begin), static_cast<int>(end));
  }

 private:
  const DepthwiseKernel& kernel_;
  DepthwiseShape shape_;
  View x_, y_;
  int64_t origin_;
  Buffer packed_;
};

class WinogradConv : public Operation {
 public:
  WinogradConv(const Source& s, const ConvSpec& c, int tile)
      : kernel_(tile == 4 ? s.kernels.winograd4_f32 : s.kernels.winograd2_f32), shape_{c.cin, c.cout, c.y.h(), c.y.w()}, x_(c.x), y_(c.y), origin_(c.origin()) {
    packed_ = packed_buffer(s, kernel_.packed_bytes(shape_), 0);
    kernel_.pack(shape_, {c.weights, c.e}, packed_.data());
    weight_bytes = packed_.bytes();
    scratch_bytes = kernel_.scratch_bytes(shape_);
    units = int64_t((y_.h() + tile - 1) / tile) * ((y_.w() + tile - 1) / tile);
    grain = std::min<int64_t>(units, 16);   // tiles share the transformed weights
    macs = c.macs();
    cost = double(macs) / speed(s.kernels.isa, false, false) / 2;
  }

  void run(Bases bases, int64_t begin, int64_t end, int thread) override {
    const WinogradRun r{reinterpret_cast<const float*>(bases[x_.base] + origin_), x_.step(0), x_.step(1), packed_.data(),
                        reinterpret_cast<float*>(y_.at(bases)), y_.step(0), y_.step(1), scratch[thread]};
    kernel_.run(shape_, r, begin, end);
  }

 private:
  const WinogradKernel& kernel_;
  WinogradShape shape_;
  View x_, y_;
  int64_t origin_;
  Buffer packed_;
};

}  // namespace

Made make_conv(const Source& source) {
  ConvSpec spec;
  read_conv(source, spec);
  if (spec.depthwise) return std::make_unique<DepthwiseConv>(source, spec);
  if (const int tile = winograd_tile(spec, source.winograd)) return std::make_unique<WinogradConv>(source, spec, tile);
  return std::make_unique<DenseConv>(source, spec);
}

}  // namespace rw
