// Convolutions: dense (any kernel, as a sum over taps), depthwise, and Winograd for 3x3 in floats.
#include <algorithm>

#include "ops/conv_spec.h"

namespace rw {
namespace {

constexpr int64_t kPiece = 16384;   // bytes
constexpr int64_t kFixedPiece = 32768;   // bytes of accumulators that a depthwise convolution leaves at a time
constexpr int64_t kMostWinogradBytes = 16 << 20;  // of weights transformed for 4 x 4 outputs
constexpr int kSplit = 64;   // channels of a part: a multiple of every kernel's block

constexpr double kWeightBytes = 40;   // that one core reads per nanosecond

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

// What follows the kernel in the fixed-point form: accumulators of a run of pixels, one behind the other, to codes.
class FixedFinish {
 public:
  FixedFinish() = default;
  FixedFinish(const Source& s, FixedEpilogue f, int first, int n, size_t taken) : kernel_(&s.kernels.fixed) {
    f.n = n;
    for (const int32_t** p : {&f.m, &f.s, &f.zero}) *p += first;
    if (f.kind == FixedKind::curve)
      for (const int32_t** p : {&f.m2, &f.s2, &f.zero2}) *p += first;
    packed_ = packed_buffer(s, kernel_->packed_bytes(n), taken);
    kernel_->pack(f, packed_.data());
  }

  size_t bytes() const { return packed_.bytes(); }
  void run(const int32_t* acc, uint8_t* y, int64_t y_pixel, int64_t pixels) const { kernel_->run(packed_.data(), acc, y, y_pixel, pixels); }

 private:
  const FixedKernel* kernel_ = nullptr;
  Buffer packed_;
};

class DenseConv : public Operation {
 public:
  DenseConv(const Source& s, const ConvSpec& c) : kernel_(c.integer ? s.kernels.conv_u8 : s.kernels.conv_f32), x_(c.x), y_(c.y), origin_(c.origin()) {
    const int64_t row = x_.step(0), pixel = x_.step(1), element = x_.t.element();
    // The taps of a row are neighbours where pixels are dense: one longer tap wastes fewer lanes.
    const bool merge = c.kw > 1 && c.dw == 1 && pixel == c.cin * element;
    shape_ = {merge ? c.kh : c.kh * c.kw, merge ? c.kw * c.cin : c.cin, c.cout, c.out_float || c.fixed};
    fixed_ = c.fixed;
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
    // Between threads, the channels are divided where pixels are few, or where weights are much more to read than activations.
    const bool heavy = double(c.taps()) * c.cout > 4.0 * x_.h() * x_.w();
    const bool split = s.threads > 1 && (grains < 2 * s.threads || heavy) && c.cout >= 2 * kSplit;
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
      FixedFinish finish;
      if (fixed_) finish = FixedFinish(s, c.f, first, shape.n, weight_bytes);
      weight_bytes += finish.bytes();
      parts_.push_back({shape, first, std::move(packed), std::move(finish)});
      if (unary_ || fixed_) scratch_bytes = std::max(scratch_bytes, static_cast<size_t>(piece_of(shape.n)) * shape.n * 4);
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
    // A function of floats takes some 3 ns for 16 of them.
    const int lanes = c.integer && shape_.out_float ? 4 : 16, padded = (c.cout + lanes - 1) / lanes * lanes;
    cost = double(macs) / c.cout * padded / speed(s.kernels.isa, c.integer, false) + double(pixels) * c.cout / (unary_ || fixed_ ? 4 : 16);
    cost = std::max(cost, double(weight_bytes) / kWeightBytes);
  }

  void run(Bases bases, int64_t begin, int64_t end, int thread) override {
    ConvRun r{};
    r.x = bases[x_.base] + origin_;
    r.x_row = x_row_;
    r.x_pixel = x_pixel_;
    r.tap = taps_.data();
    r.y_row = y_row_;
    r.y_pixel = y_pixel_;
    r.out_w = out_w_;
    if (parts_.size() == 1) return run_part(bases, r, parts_[0], begin, end, thread);
    for (int64_t i = begin; i < end; i++) run_part(bases, r, parts_[i], 0, pixels_, thread);
  }

 private:
  struct Part {
    ConvShape shape;
    int first;          // channel
    Buffer packed;
    FixedFinish finish;
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

  void run_part(Bases bases, ConvRun r, const Part& part, int64_t begin, int64_t end, int thread) const {
    r.packed = part.packed.data();
    r.y = y_.at(bases) + part.first * y_.t.element();
    if (!unary_ && !fixed_) return kernel_.run(part.shape, r, begin, end);
    // In pieces, so that the function finds its values in the first cache; and beside the result, as it is slow on short runs.
    const int64_t n = part.shape.n, pixel = n * 4, piece = piece_of(part.shape.n);
    ConvRun beside = r;
    beside.y_pixel = pixel;
    beside.y_row = pixel * r.out_w;
    auto* const values = reinterpret_cast<float*>(scratch[thread]);
    for (int64_t i = begin; i < end; i += piece) {
      const int64_t last = std::min(end, i + piece);
      beside.y = scratch[thread] - i * pixel;
      kernel_.run(part.shape, beside, i, last);
      if (fixed_) {
        finish_fixed(part.finish, scratch[thread], static_cast<uint8_t*>(r.y), r, n, i, last);
        continue;
      }
      unary_(values, values, (last - i) * n, function_, a_, b_);
      scatter(values, static_cast<uint8_t*>(r.y), r, n, i, last);
    }
  }

  // Pixels whose values a thread keeps beside the result.
  int64_t piece_of(int n) const { return std::max<int64_t>(1, kPiece / (n * 4) / kernel_.tile) * kernel_.tile; }

  static void finish_fixed(const FixedFinish& finish, const uint8_t* scratch, uint8_t* y, const ConvRun& r, int64_t n, int64_t begin, int64_t end) {
    const auto* acc = reinterpret_cast<const int32_t*>(scratch);
    for (int64_t i = begin; i < end;) {
      const int64_t row = i / r.out_w, pixels = std::min(end, (row + 1) * r.out_w) - i;
      finish.run(acc, y + row * r.y_row + i % r.out_w * r.y_pixel, r.y_pixel, pixels);
      acc += pixels * n;
      i += pixels;
    }
  }

  static void scatter(const float* values, uint8_t* y, const ConvRun& r, int64_t n, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t row = i / r.out_w, stop = std::min(end, (row + 1) * r.out_w);
      uint8_t* to = y + row * r.y_row + i % r.out_w * r.y_pixel;
      if (r.y_pixel == n * 4) {
        std::memcpy(to, values, static_cast<size_t>((stop - i) * n) * 4);
        values += (stop - i) * n;
        i = stop;
      }
      for (; i < stop; i++, to += r.y_pixel, values += n) {
        if (n == 1) std::memcpy(to, values, 4);
        else std::memcpy(to, values, static_cast<size_t>(n) * 4);
      }
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
  bool fixed_ = false;
};

class DepthwiseConv : public Operation {
 public:
  DepthwiseConv(const Source& s, const ConvSpec& c)
      : kernel_(c.integer ? s.kernels.depthwise_u8 : s.kernels.depthwise_f32),
        shape_{c.kh, c.kw, c.sh, c.sw, c.dh, c.dw, c.cout, c.out_float || c.fixed}, fixed_(c.fixed), x_(c.x), y_(c.y), origin_(c.origin()) {
    packed_ = packed_buffer(s, kernel_.packed_bytes(shape_), 0);
    kernel_.pack(shape_, {c.weights, c.e}, packed_.data());
    weight_bytes = packed_.bytes();
    units = y_.h();
    units_per_row = 1;
    if (c.integer && c.kh == 3 && c.kw == 3 && c.sh == 1 && c.sw == 1) grain = 2;   // rows are computed in pairs
    macs = c.macs();
    cost = double(macs) / speed(s.kernels.isa, c.integer, true) + double(c.pixels()) * c.cout / (fixed_ ? 4 : 16);
    if (!fixed_) return;
    finish_ = FixedFinish(s, c.f, 0, c.cout, weight_bytes);
    weight_bytes += finish_.bytes();
    columns_ = static_cast<int>(std::min<int64_t>(y_.w(), std::max<int64_t>(1, kFixedPiece / (int64_t(c.cout) * 4 * grain))));
    scratch_bytes = size_t(columns_) * c.cout * 4 * grain;
  }

  void run(Bases bases, int64_t begin, int64_t end, int thread) override {
    if (fixed_) return run_fixed(bases, begin, end, thread);
    const DepthwiseRun r{bases[x_.base] + origin_, x_.step(0), x_.step(1), packed_.data(), y_.at(bases), y_.step(0), y_.step(1), y_.h(), y_.w()};
    kernel_.run(shape_, r, static_cast<int>(begin), static_cast<int>(end));
  }

 private:
  // In pieces of a row (or a pair of rows) whose accumulators stay in a near cache.
  void run_fixed(Bases bases, int64_t begin, int64_t end, int thread) const {
    const int64_t pixel = int64_t(shape_.c) * 4;
    for (int64_t row = begin; row < end; row += grain)
      for (int first = 0; first < y_.w(); first += columns_) {
        const int columns = std::min(columns_, y_.w() - first), last = static_cast<int>(std::min(end, row + grain));
        const int64_t y_row = pixel * columns;
        const DepthwiseRun r{bases[x_.base] + origin_ + int64_t(first) * shape_.sw * x_.step(1), x_.step(0), x_.step(1), packed_.data(),
                             scratch[thread] - row * y_row, y_row, pixel, y_.h(), columns};
        kernel_.run(shape_, r, static_cast<int>(row), last);
        for (int64_t i = row; i < last; i++)
          finish_.run(reinterpret_cast<const int32_t*>(scratch[thread] + (i - row) * y_row), y_.at(bases) + i * y_.step(0) + first * y_.step(1), y_.step(1), columns);
      }
  }

  const DepthwiseKernel& kernel_;
  DepthwiseShape shape_;
  bool fixed_;
  FixedFinish finish_;
  int columns_ = 0;
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
