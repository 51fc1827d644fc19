// Operations on floats with any strides: UNARY, BINARY, SOFTMAX. The kernels want dense results; what is not dense goes
// through a piece of memory beside it.
#include "ops/nest.h"
#include "ops/ops.h"

namespace rw {
namespace {

constexpr int64_t kPiece = 256;   // floats: a piece stays in the first cache

void gather_floats(const uint8_t* x, int64_t step, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i++) std::memcpy(out + i, x + i * step, 4);
}

void scatter_floats(const float* in, uint8_t* y, int64_t step, int64_t n) {
  for (int64_t i = 0; i < n; i++) std::memcpy(y + i * step, in + i, 4);
}

// The loop along which most operands are dense; the result counts most.
int dense_loop(const std::vector<Loop>& loops, bool keep_first, int operands) {
  const int best = best_loop(loops, keep_first, [&](const Loop& l) {
    double score = l.step[operands - 1] == 4 ? 8 : 1;
    for (int k = 0; k < operands - 1; k++) score *= l.step[k] == 4 || l.step[k] == 0 ? 2 : 1;
    return score * double(std::min<int64_t>(l.n, 64));
  });
  return best >= 0 ? best : static_cast<int>(loops.size()) - 1;
}

class Unary : public Walker {
 public:
  Unary(Nest nest, const Source& s, const View& x, const View& y) : Walker(std::move(nest), y, 1.0), x_(x), y_(y), run_(s.kernels.unary_f32) {
    function_ = s.integer(0, "function", 0, kUnaryFunctions);
    a_ = s.real(1, "a");
    b_ = s.real(2, "b");
  }

  void run(Bases bases, int64_t begin, int64_t end, int) override {
    const int64_t xs = nest_.loop(0).step[0], ys = nest_.loop(0).step[1];
    nest_.walk(begin, end, [&](const int64_t* at, int64_t n) {
      const uint8_t* x = x_.at(bases) + at[0];
      uint8_t* y = y_.at(bases) + at[1];
      if (xs == 4 && ys == 4) return run_(reinterpret_cast<const float*>(x), reinterpret_cast<float*>(y), n, function_, a_, b_);
      float in[kPiece], out[kPiece];
      for (int64_t i = 0; i < n; i += kPiece) {
        const int64_t m = std::min(kPiece, n - i);
        gather_floats(x + i * xs, xs, in, m);
        run_(in, out, m, function_, a_, b_);
        scatter_floats(out, y + i * ys, ys, m);
      }
    });
  }

 private:
  View x_, y_;
  UnaryFn run_;
  int function_;
  float a_, b_;
};

class Binary : public Walker {
 public:
  Binary(Nest nest, const Source& s, const View& a, const View& b, const View& y) : Walker(std::move(nest), y, 1.0), a_(a), b_(b), y_(y), run_(s.kernels.binary_f32) {
    function_ = s.integer(0, "function", 0, kBinaryFunctions);
    unary_ = s.integer(1, "unary", 0, kUnaryFunctions);
    ua_ = s.real(2, "ua");
    ub_ = s.real(3, "ub");
  }

  void run(Bases bases, int64_t begin, int64_t end, int) override {
    const Loop& inner = nest_.loop(0);
    const int64_t as = inner.step[0] / 4, bs = inner.step[1] / 4, ys = inner.step[2];
    nest_.walk(begin, end, [&](const int64_t* at, int64_t n) {
      const auto* a = reinterpret_cast<const float*>(a_.at(bases) + at[0]);
      const auto* b = reinterpret_cast<const float*>(b_.at(bases) + at[1]);
      uint8_t* y = y_.at(bases) + at[2];
      if (ys == 4) return run_(a, as, b, bs, reinterpret_cast<float*>(y), n, function_, unary_, ua_, ub_);
      float out[kPiece];
      for (int64_t i = 0; i < n; i += kPiece) {
        const int64_t m = std::min(kPiece, n - i);
        run_(a + i * as, as, b + i * bs, bs, out, m, function_, unary_, ua_, ub_);
        scatter_floats(out, y + i * ys, ys, m);
      }
    });
  }

 private:
  View a_, b_, y_;
  BinaryFn run_;
  int function_, unary_;
  float ua_, ub_;
};

class Softmax : public Walker {
 public:
  Softmax(Nest nest, const Source& s, const View& x, const View& y) : Walker(std::move(nest), y, 2.0), x_(x), y_(y), run_(s.kernels.softmax_f32), n_(y.t.dims[y.t.rank - 1]) {
    scratch_bytes = static_cast<size_t>(n_) * 8;
    if (grain > 1) grain = 1;
  }

  void run(Bases bases, int64_t begin, int64_t end, int thread) override {
    auto* const in = reinterpret_cast<float*>(scratch[thread]);
    float* const out = in + n_;
    const int64_t xs = x_.step(x_.t.rank - 1), ys = y_.step(y_.t.rank - 1);
    const Loop& inner = nest_.loop(0);
    nest_.walk(begin, end, [&](const int64_t* at, int64_t rows) {
      for (int64_t r = 0; r < rows; r++) {
        const uint8_t* x = x_.at(bases) + at[0] + r * inner.step[0];
        uint8_t* y = y_.at(bases) + at[1] + r * inner.step[1];
        if (xs != 4) gather_floats(x, xs, in, n_);
        run_(xs == 4 ? reinterpret_cast<const float*>(x) : in, ys == 4 ? reinterpret_cast<float*>(y) : out, n_);
        if (ys != 4) scatter_floats(out, y, ys, n_);
      }
    });
  }

 private:
  View x_, y_;
  SoftmaxFn run_;
  int64_t n_;
};

}  // namespace

Made make_unary(const Source& s) {
  const View x = s.tensor(0, "x", Dtype::f32), y = s.tensor(1, "y", Dtype::f32);
  s.same_dims(x, y);
  const auto loops = loops_of({&x, &y});
  const bool border = y.t.has_border();
  return std::make_unique<Unary>(Nest(loops, 1, {dense_loop(loops, border, 2)}, border), s, x, y);
}

Made make_binary(const Source& s) {
  const View a = s.tensor(0, "a", Dtype::f32), b = s.tensor(1, "b", Dtype::f32), y = s.tensor(2, "y", Dtype::f32);
  s.same_dims(a, y);
  s.same_dims(b, y);
  const auto loops = loops_of({&a, &b, &y});
  const bool border = y.t.has_border();
  return std::make_unique<Binary>(Nest(loops, 2, {dense_loop(loops, border, 3)}, border), s, a, b, y);
}

Made make_softmax(const Source& s) {
  const View x = s.tensor(0, "x", Dtype::f32), y = s.tensor(1, "y", Dtype::f32);
  s.same_dims(x, y);
  auto loops = loops_of({&x, &y});
  if (loops.size() == 1) loops.push_back(Loop{});
  // The last dimension is the kernel's; the nest walks the others.
  loops[y.t.rank - 1] = Loop{};
  const bool border = y.t.has_border();
  return std::make_unique<Softmax>(Nest(loops, 1, {dense_loop(loops, border, 2)}, border), s, x, y);
}

}  // namespace rw
