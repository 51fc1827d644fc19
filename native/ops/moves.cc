// Operations that move values between layouts and between codes and floats: COPY, QUANTIZE, DEQUANTIZE, and TABLE.
#include <numeric>

#include "ops/nest.h"
#include "ops/ops.h"

namespace rw {
namespace {

constexpr int kMostPlanes = 4;

int any_loop(const std::vector<Loop>& loops, bool keep_first) {
  const int longest = best_loop(loops, keep_first, [](const Loop& l) { return double(l.n); });
  return longest >= 0 ? longest : static_cast<int>(loops.size()) - 1;
}

template <class T>
void copy_steps(const uint8_t* x, int64_t x_step, uint8_t* y, int64_t y_step, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    T value;
    std::memcpy(&value, x + i * x_step, sizeof(T));
    std::memcpy(y + i * y_step, &value, sizeof(T));
  }
}

// Along stretches that are dense on both sides, or element by element.
class Copy : public Walker {
 public:
  Copy(Nest nest, const View& x, const View& y) : Walker(std::move(nest), y, 0.1), x_(x), y_(y), element_(y.t.element()) {}

  void run(Bases bases, int64_t begin, int64_t end, int) override {
    const uint8_t* const x = x_.at(bases);
    uint8_t* const y = y_.at(bases);
    const int64_t xs = nest_.loop(0).step[0], ys = nest_.loop(0).step[1];
    const bool dense = xs == element_ && ys == element_;
    nest_.walk(begin, end, [&](const int64_t* at, int64_t n) {
      if (dense) std::memmove(y + at[1], x + at[0], n * element_);
      else if (element_ == 1) copy_steps<uint8_t>(x + at[0], xs, y + at[1], ys, n);
      else copy_steps<uint32_t>(x + at[0], xs, y + at[1], ys, n);
    });
  }

 private:
  View x_, y_;
  int64_t element_;
};

// x is dense along one dimension and y along another.
class Transpose : public Walker {
 public:
  Transpose(Nest nest, const View& x, const View& y, TransposeFn run) : Walker(std::move(nest), y, 0.3), x_(x), y_(y), run_(run) {
    if (nest_.flat()) grain = 16;
  }

  void run(Bases bases, int64_t begin, int64_t end, int) override {
    const Loop &rows = nest_.loop(1), &columns = nest_.loop(0);
    nest_.walk(begin, end, [&](const int64_t* at, int64_t n) {
      run_(x_.at(bases) + at[0], rows.step[0], y_.at(bases) + at[1], columns.step[1], static_cast<int>(n), static_cast<int>(columns.n), static_cast<int>(y_.t.element()));
    });
  }

 private:
  View x_, y_;
  TransposeFn run_;
};

// Scale and zero point: one, or one per index of an axis.
struct Scales {
  std::vector<float> scale;
  std::vector<int32_t> zero;
  int axis = -1;

  Scales(const Source& s, const View& x) {
    axis = s.integer(0, "axis", -1, x.t.rank - 1);
    const int64_t n = axis < 0 ? 1 : x.t.dims[axis];
    const bool one = s.op.blobs[0].size == 4;
    if (one) axis = -1;
    scale = s.reals(0, "scales", one ? 1 : n);
    zero = s.integers(1, "zero points", one ? 1 : n, 0, 255);
    for (float v : scale) s.require(v > 0, "has a scale that is not positive");
  }
};

// The inner loop, for kernels that take x and y with steps and one scale, or dense x and y with a scale per element.
int scaled_loop(const std::vector<Loop>& loops, bool keep_first, int64_t x_element, int64_t y_element) {
  const int best = best_loop(loops, keep_first, [&](const Loop& l) {
    const bool x = l.step[0] == x_element, y = l.step[1] == y_element, scaled = l.step[2] != 0;
    if (scaled && !(x && y)) return -1.0;
    // A short dense run loses against a long one with steps.
    return double(std::min<int64_t>(l.n, 64)) * (x && y ? 8 : x || y ? 2 : 1);
  });
  return best >= 0 ? best : any_loop(loops, keep_first);
}

std::vector<Loop> scaled_loops(const View& x, const View& y, const Scales& scales) {
  auto loops = loops_of({&x, &y});
  if (scales.axis >= 0) loops[scales.axis].step[2] = 1;
  return loops;
}

template <class From, class To, class Fn, class RowFn>
class Convert : public Walker {
 public:
  Convert(Nest nest, const View& x, const View& y, Scales scales, Fn steps, RowFn row)
      : Walker(std::move(nest), y, 0.2), x_(x), y_(y), scales_(std::move(scales)), steps_(steps), row_(row) {}

  void run(Bases bases, int64_t begin, int64_t end, int) override {
    const uint8_t* const x = x_.at(bases);
    uint8_t* const y = y_.at(bases);
    const Loop& inner = nest_.loop(0);
    const int64_t xs = inner.step[0] / int64_t(sizeof(From)), ys = inner.step[1] / int64_t(sizeof(To));
    nest_.walk(begin, end, [&](const int64_t* at, int64_t n) {
      const auto* from = reinterpret_cast<const From*>(x + at[0]);
      auto* to = reinterpret_cast<To*>(y + at[1]);
      const float* scale = scales_.scale.data() + at[2];
      const int32_t* zero = scales_.zero.data() + at[2];
      if (inner.step[2] == 0) return steps_(from, xs, to, ys, n, *scale, *zero);
      if (xs == 1 && ys == 1) return row_(from, to, n, scale, zero);
      for (int64_t i = 0; i < n; i++) steps_(from + i * xs, 1, to + i * ys, 1, 1, scale[i], zero[i]);
    });
  }

 private:
  View x_, y_;
  Scales scales_;
  Fn steps_;
  RowFn row_;
};

// The usual network input: a few planes of floats to interleaved codes.
class QuantizePlanes : public Operation {
 public:
  QuantizePlanes(const View& x, const View& y, const Scales& scales, QuantizePlanesFn run) : x_(x), y_(y), run_(run) {
    for (int c = 0; c < y.c(); c++) {
      scale_[c] = scales.scale[scales.axis < 0 ? 0 : c];
      zero_[c] = scales.zero[scales.axis < 0 ? 0 : c];
    }
    units = y.h();
    units_per_row = 1;
    cost = double(y.t.count()) * 0.1;
  }

  void run(Bases bases, int64_t begin, int64_t end, int) override {
    const float* planes[kMostPlanes] = {};
    for (int64_t row = begin; row < end; row++) {
      for (int c = 0; c < y_.c(); c++) planes[c] = reinterpret_cast<const float*>(x_.at(bases) + row * x_.step(0) + c * x_.step(2));
      run_(planes, y_.c(), y_.at(bases) + row * y_.step(0), y_.step(1), y_.w(), scale_, zero_);
    }
  }

 private:
  View x_, y_;
  QuantizePlanesFn run_;
  float scale_[kMostPlanes] = {};
  int32_t zero_[kMostPlanes] = {};
};

// A table over any strides, in runs that are images of one row.
class TableRuns : public Walker {
 public:
  TableRuns(Nest nest, const View& x, const View& y, std::vector<uint8_t> table, TableFn run)
      : Walker(std::move(nest), y, 0.1), x_(x), y_(y), table_(std::move(table)), run_(run) {}

  void run(Bases bases, int64_t begin, int64_t end, int) override {
    const int64_t xs = nest_.loop(0).step[0], ys = nest_.loop(0).step[1];
    const bool dense = xs == 1 && ys == 1;
    nest_.walk(begin, end, [&](const int64_t* at, int64_t n) {
      const int count = static_cast<int>(n);
      const Image in = {x_.at(bases) + at[0], 0, xs, 1, dense ? 1 : count, dense ? count : 1};
      const Image out = {y_.at(bases) + at[1], 0, ys, 1, dense ? 1 : count, dense ? count : 1};
      run_(in, out, table_.data(), 0, 1);
    });
  }

 private:
  View x_, y_;
  std::vector<uint8_t> table_;
  TableFn run_;
};

}  // namespace

Made make_copy(const Source& s) {
  const View x = s.tensors[0], y = s.tensor(1, "y", s.tensors[0].t.dtype);
  s.same_dims(x, y);
  const auto loops = loops_of({&x, &y});
  const bool border = y.t.has_border();
  const int64_t element = y.t.element();
  const int both = best_loop(loops, border, [&](const Loop& l) { return l.step[0] == element && l.step[1] == element ? double(l.n) : -1.0; });
  if (both < 0) {
    const int from = best_loop(loops, border, [&](const Loop& l) { return l.step[0] == element ? double(l.n) : -1.0; });
    const int to = best_loop(loops, border, [&](const Loop& l) { return l.step[1] == element ? double(l.n) : -1.0; });
    if (from >= 0 && to >= 0 && from != to)
      return std::make_unique<Transpose>(Nest(loops, 1, {to, from}, border), x, y, s.kernels.transpose);
  }
  return std::make_unique<Copy>(Nest(loops, 1, {both >= 0 ? both : any_loop(loops, border)}, border), x, y);
}

Made make_quantize(const Source& s) {
  const View x = s.tensor(0, "x", Dtype::f32), y = s.tensor(1, "y", Dtype::u8);
  s.same_dims(x, y);
  Scales scales(s, x);
  const bool image = y.t.rank == 3 && y.c() <= kMostPlanes && y.t.strides[2] == 1;
  if (image && y.c() > 1 && x.t.strides[1] == 1 && (scales.axis < 0 || scales.axis == 2))
    return std::make_unique<QuantizePlanes>(x, y, scales, s.kernels.quantize_planes);
  const auto loops = scaled_loops(x, y, scales);
  const bool border = y.t.has_border();
  Nest nest(loops, 1, {scaled_loop(loops, border, 4, 1)}, border);
  return std::make_unique<Convert<float, uint8_t, QuantizeFn, QuantizeRowFn>>(std::move(nest), x, y, std::move(scales), s.kernels.quantize, s.kernels.quantize_row);
}

Made make_dequantize(const Source& s) {
  const View x = s.tensor(0, "x", Dtype::u8), y = s.tensor(1, "y", Dtype::f32);
  s.same_dims(x, y);
  Scales scales(s, x);
  const auto loops = scaled_loops(x, y, scales);
  const bool border = y.t.has_border();
  Nest nest(loops, 1, {scaled_loop(loops, border, 1, 4)}, border);
  return std::make_unique<Convert<uint8_t, float, DequantizeFn, DequantizeRowFn>>(std::move(nest), x, y, std::move(scales), s.kernels.dequantize, s.kernels.dequantize_row);
}

Made make_table(const Source& s) {
  const View x = s.tensor(0, "x", Dtype::u8), y = s.tensor(1, "y", Dtype::u8);
  s.same_dims(x, y);
  const auto loops = loops_of({&x, &y});
  const bool border = y.t.has_border();
  const int both = best_loop(loops, border, [](const Loop& l) { return l.step[0] == 1 && l.step[1] == 1 ? double(l.n) : -1.0; });
  Nest nest(loops, 1, {both >= 0 ? both : any_loop(loops, border)}, border);
  return std::make_unique<TableRuns>(std::move(nest), x, y, s.blob<uint8_t>(0, "table", 256), s.kernels.table_u8);
}

}  // namespace rw
