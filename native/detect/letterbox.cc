// Rows of the input are made independently, in chunks; a chunk keeps the two image rows it resized last, since neighbouring
// rows of the input share them.
#include "detect/letterbox.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "engine/error.h"

namespace rw {
namespace {

constexpr float kOne = 2048;  // the weights' unit

// The neighbours and weights of `count` resized pixels from `first` on, out of `resized` made from `original`.
// Columns that fall outside are moved in with a weight of 0; rows keep their weights and are clipped later, as OpenCV has it.
void place(int original, int resized, int first, int count, bool move_in, std::vector<int32_t>* at, std::vector<int16_t>* weight) {
  const double scale = 1.0 / (static_cast<double>(resized) / original);
  at->resize(static_cast<size_t>(count));
  weight->resize(static_cast<size_t>(count) * 2);
  for (int i = 0; i < count; ++i) {
    float f = static_cast<float>((first + i + 0.5) * scale - 0.5);
    int s = static_cast<int>(std::floor(f));
    f -= static_cast<float>(s);
    if (move_in && s < 0) s = 0, f = 0;
    if (move_in && s >= original - 1) s = original - 1, f = 0;
    (*at)[static_cast<size_t>(i)] = s;
    (*weight)[2 * static_cast<size_t>(i)] = static_cast<int16_t>(std::nearbyint((1.0f - f) * kOne));
    (*weight)[2 * static_cast<size_t>(i) + 1] = static_cast<int16_t>(std::nearbyint(f * kOne));
  }
}

// OpenCV's BGR2GRAY: ITU-R BT.601 in 1/32768.
inline uint8_t gray(const uint8_t* bgr) { return static_cast<uint8_t>((bgr[0] * 3735 + bgr[1] * 19235 + bgr[2] * 9798 + (1 << 14)) >> 15); }

size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

void Geometry::to_image(float b[4]) const {
  auto back = [](double v, double offset, double ratio, int side) {
    return static_cast<float>(std::min(std::max((v - offset) / ratio, 0.0), static_cast<double>(side)));
  };
  b[0] = back(b[0], offset_x, ratio_x, width);
  b[1] = back(b[1], offset_y, ratio_y, height);
  b[2] = back(b[2], offset_x, ratio_x, width);
  b[3] = back(b[3], offset_y, ratio_y, height);
}

void Parallel::operator()(int chunks, void (*function)(void* context, int chunk, int thread), void* context) const {
  if (run) return run(self, chunks, function, context);
  for (int chunk = 0; chunk < chunks; ++chunk) function(context, chunk, 0);
}

// What one call writes, and where.
struct Letterbox::Call {
  const Letterbox* self;
  Picture image;
  const uint8_t* code_tables;   // or
  const float* float_tables;
  Image codes;
  float* floats;
  int64_t row, pixel, channel;  // of floats, in elements
  int channels, chunks;
  bool as_they_are;             // pixels are their codes, and lie side by side: no table is needed
};

std::vector<float> Letterbox::levels() const {
  std::vector<float> out;
  for (size_t c = 0; c < static_cast<size_t>(p_.channels()); ++c)
    for (int level = 0; level < 256; ++level) out.push_back(static_cast<float>((level * p_.scale - p_.mean[c]) / p_.std[c]));
  return out;
}

std::vector<uint8_t> Letterbox::codes(const std::vector<float>& scale, const std::vector<int32_t>& zero) const {
  std::vector<uint8_t> out;
  const std::vector<float> values = levels();
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t c = i / 256;
    const float s = scale[scale.size() == 1 ? 0 : c];
    const float q = std::min(std::max(std::nearbyint(values[i] / s), -32768.0f), 32767.0f);
    out.push_back(static_cast<uint8_t>(std::min(std::max(static_cast<int>(q) + zero[zero.size() == 1 ? 0 : c], 0), 255)));
  }
  return out;
}

void Letterbox::prepare(int h, int w) {
  if (h < 1 || w < 1 || h > 1 << 15 || w > 1 << 15)
    fail("an image is " + std::to_string(h) + "x" + std::to_string(w) + "; give one with sides of 1 to 32768 pixels");
  if (geometry_.height == h && geometry_.width == w) return;
  geometry_.height = 0;  // until all is done
  const int in_h = p_.height, in_w = p_.width;
  top_ = left_ = 0;
  new_h_ = in_h, new_w_ = in_w;
  if (p_.resize == Resize::none && (h != in_h || w != in_w)) {
    auto size = [](int a, int b) { return std::to_string(a) + "x" + std::to_string(b); };
    fail("an image is " + size(h, w) + " but the model takes " + size(in_h, in_w) +
         " (height x width) and resize is 'none'; set resize to letterbox, stretch or crop");
  }
  const double fit_h = static_cast<double>(in_h) / h, fit_w = static_cast<double>(in_w) / w;
  if (p_.resize == Resize::crop) {
    const double ratio = p_.short_side ? static_cast<double>(p_.short_side) / std::min(h, w) : std::max(fit_h, fit_w);
    new_h_ = std::max(static_cast<int>(h * ratio + 1e-6), in_h);
    new_w_ = std::max(static_cast<int>(w * ratio + 1e-6), in_w);
    top_ = -static_cast<int>(std::nearbyint((new_h_ - in_h) / 2.0));
    left_ = -static_cast<int>(std::nearbyint((new_w_ - in_w) / 2.0));
  } else if (p_.resize == Resize::letterbox) {
    const double ratio = std::min(fit_h, fit_w);
    if (p_.anchor == Anchor::center) {
      new_h_ = std::max(static_cast<int>(std::nearbyint(h * ratio)), 1);
      new_w_ = std::max(static_cast<int>(std::nearbyint(w * ratio)), 1);
      top_ = static_cast<int>(std::nearbyint((in_h - new_h_) / 2.0 - 0.1));
      left_ = static_cast<int>(std::nearbyint((in_w - new_w_) / 2.0 - 0.1));
    } else {
      new_h_ = std::max(static_cast<int>(h * ratio), 1);
      new_w_ = std::max(static_cast<int>(w * ratio), 1);
    }
  }
  geometry_.ratio_x = static_cast<double>(new_w_) / w;
  geometry_.ratio_y = static_cast<double>(new_h_) / h;
  geometry_.offset_x = left_;
  geometry_.offset_y = top_;
  copy_ = new_h_ == h && new_w_ == w;
  if (!copy_ && p_.interpolation != Interpolation::linear)
    fail("the task resizes images with another interpolation than linear, which the native engine does not have; prepare the input in Python");
  first_ = std::max(0, -left_);
  columns_ = std::min(new_w_, in_w - left_) - first_;
  if (!copy_) prepare_tables(h, w);
  // two resized rows with slack, a row of pixels, and a row of other colours
  scratch_bytes_ = 2 * rounded(static_cast<size_t>(columns_) * 6 + 128) + 2 * rounded(static_cast<size_t>(columns_) * 3 + 64);
  geometry_.height = h;
  geometry_.width = w;
}

void Letterbox::prepare_tables(int h, int w) {
  place(w, new_w_, first_, columns_, true, &column_, &column_weight_);
  place(h, new_h_, 0, new_h_, false, &row_, &row_weight_);
  const ResizeShape shape = {w, columns_, p_.color == Color::rgb};
  packed_.resize(kernels_.resize_u8.packed_bytes(shape) + 64);
  kernels_.resize_u8.pack(shape, column_.data(), column_weight_.data(), packed_.data());
}

bool Letterbox::supports(int height, int width) const {
  if (p_.interpolation == Interpolation::linear || p_.resize == Resize::none) return true;
  Letterbox probe(p_, kernels_);
  try {
    probe.prepare(height, width);
    return true;
  } catch (const Error&) {
    return false;
  }
}

// The pixels of one row of the resized image, in the input's channel order (three channels): in `pixels`, or in the image itself.
const uint8_t* Letterbox::line(const Call& call, int y, uint8_t* scratch, int (&cached)[2], uint8_t* pixels) const {
  const size_t resized_bytes = rounded(static_cast<size_t>(columns_) * 6 + 128);
  const auto source = [&](int at) { return call.image.bgr + at * call.image.row; };
  if (copy_) {
    const uint8_t* from = source(y) + 3 * first_;
    if (p_.color != Color::rgb) return from;
    for (int i = 0; i < columns_; ++i) {
      pixels[3 * i] = from[3 * i + 2];
      pixels[3 * i + 1] = from[3 * i + 1];
      pixels[3 * i + 2] = from[3 * i];
    }
    return pixels;
  }
  const ResizeShape shape = {call.image.width, columns_, p_.color == Color::rgb};
  int16_t* resized[2];
  const int upper = row_[static_cast<size_t>(y)];
  for (int k = 0; k < 2; ++k) {
    const int at = std::min(std::max(upper + k, 0), call.image.height - 1), slot = at & 1;  // neighbours never share a slot
    resized[k] = reinterpret_cast<int16_t*>(scratch + static_cast<size_t>(slot) * resized_bytes);
    if (cached[slot] == at) continue;
    kernels_.resize_u8.row(shape, packed_.data(), source(at), resized[k]);
    cached[slot] = at;
  }
  const int16_t* weight = &row_weight_[2 * static_cast<size_t>(y)];
  kernels_.resize_u8.blend(resized[0], resized[1], weight[0], weight[1], pixels, int64_t(3) * columns_);
  return pixels;
}

// Writes `count` pixels (of one or three channels) to row y from column x on.
void Letterbox::emit(const Call& call, const uint8_t* pixels, int count, int y, int x) {
  if (call.code_tables) {
    uint8_t* out = static_cast<uint8_t*>(call.codes.data) + y * call.codes.row + x * call.codes.pixel;
    if (call.channels == 3) return call.self->kernels_.codes_u8(pixels, count, call.code_tables, out, call.codes.pixel);
    for (int i = 0; i < count; ++i) out[i * call.codes.pixel] = call.code_tables[pixels[i]];
    return;
  }
  for (int c = 0; c < call.channels; ++c) {
    const float* table = call.float_tables + 256 * c;
    float* out = call.floats + y * call.row + x * call.pixel + c * call.channel;
    if (call.pixel == 1)
      for (int i = 0; i < count; ++i) out[i] = table[pixels[i * call.channels + c]];
    else
      for (int i = 0; i < count; ++i) out[i * call.pixel] = table[pixels[i * call.channels + c]];
  }
}

void Letterbox::row(const Call& call, int y, uint8_t* scratch, int (&cached)[2]) const {
  const int left = left_ + first_, right = left + columns_, from = y - top_;
  uint8_t* spare = scratch + 2 * rounded(static_cast<size_t>(columns_) * 6 + 128) + rounded(static_cast<size_t>(columns_) * 3 + 64);
  uint8_t pad[3 * 64];
  const auto fill = [&](int begin, int end) {
    for (; begin < end; begin += 64) emit(call, pad, std::min(end - begin, 64), y, begin);
  };
  memset(pad, p_.pad_value, sizeof pad);
  if (from < 0 || from >= new_h_) return fill(0, p_.width);
  uint8_t* place = scratch + 2 * rounded(static_cast<size_t>(columns_) * 6 + 128);
  if (call.as_they_are) place = static_cast<uint8_t*>(call.codes.data) + y * call.codes.row + left * call.codes.pixel;
  const uint8_t* pixels = line(call, from, scratch, cached, place);
  if (call.channels == 1) {
    for (int i = 0; i < columns_; ++i) spare[i] = gray(pixels + 3 * i);
    pixels = spare;
  }
  fill(0, left);
  if (!call.as_they_are || pixels != place) emit(call, pixels, columns_, y, left);
  fill(right, p_.width);
}

void Letterbox::run_chunk(void* context, int chunk, int thread) {
  const Call& call = *static_cast<const Call*>(context);
  const Letterbox& self = *call.self;
  uint8_t* base = const_cast<uint8_t*>(self.scratch_.data());
  base += (64 - reinterpret_cast<uintptr_t>(base) % 64) % 64;
  int cached[2] = {-1, -1};
  const int64_t rows = self.p_.height;
  for (int64_t y = rows * chunk / call.chunks; y < rows * (chunk + 1) / call.chunks; ++y)
    self.row(call, static_cast<int>(y), base + static_cast<size_t>(thread) * self.scratch_bytes_, cached);
}

void Letterbox::write(Call* call, const Parallel& parallel) {
  const size_t needed = scratch_bytes_ * static_cast<size_t>(parallel.threads) + 64;
  if (scratch_.size() < needed) scratch_.resize(needed);
  call->self = this;
  call->channels = p_.channels();
  call->chunks = parallel.threads == 1 ? 1 : std::min(4 * parallel.threads, p_.height);
  parallel(call->chunks, &Letterbox::run_chunk, call);
}

const Geometry& Letterbox::write_codes(const Picture& image, const uint8_t* tables, const Image& out, const Parallel& parallel) {
  prepare(image.height, image.width);
  Call call{};
  call.image = image;
  call.code_tables = tables;
  call.codes = out;
  call.as_they_are = out.pixel == 3 && p_.channels() == 3;
  for (int i = 0; i < 768 && call.as_they_are; ++i) call.as_they_are = tables[i] == (i & 255);
  write(&call, parallel);
  return geometry_;
}

const Geometry& Letterbox::write_floats(const Picture& image, const float* tables, float* out, const Parallel& parallel) {
  prepare(image.height, image.width);
  Call call{};
  call.image = image;
  call.float_tables = tables;
  call.floats = out;
  const int64_t c = p_.channels();
  call.pixel = p_.nhwc ? c : 1;
  call.row = p_.width * call.pixel;
  call.channel = p_.nhwc ? 1 : call.row * p_.height;
  write(&call, parallel);
  return geometry_;
}

}  // namespace rw
