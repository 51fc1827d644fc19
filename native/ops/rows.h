// An operation on images that one kernel call computes for a run of rows.
#pragma once
#include <algorithm>

#include "ops/ops.h"

namespace rw {

// `call(bases, begin, end)` writes rows [begin, end).
template <class F>
class Rows : public Operation {
 public:
  Rows(const View& y, double ns_per_element, F call) : call_(std::move(call)) {
    units = y.t.dims[0];
    units_per_row = 1;
    cost = double(y.t.count()) * ns_per_element;
  }
  void run(Bases bases, int64_t begin, int64_t end, int) override { call_(bases, static_cast<int>(begin), static_cast<int>(end)); }

 private:
  F call_;
};

template <class F>
Made rows(const View& y, double ns_per_element, F call) {
  return std::make_unique<Rows<F>>(y, ns_per_element, std::move(call));
}

// The window of a pool: its first six attributes, checked. Every window meets the image: one without a position would have no result.
struct Window {
  int kh, kw, sh, sw, pad_top, pad_left;

  Window(const Source& s, const View& x, const View& y)
      : kh(s.integer(0, "kh", 1, kSize)), kw(s.integer(1, "kw", 1, kSize)), sh(s.integer(2, "sh", 1, kSize)), sw(s.integer(3, "sw", 1, kSize)),
        pad_top(s.integer(4, "pad top", 0, kSize)), pad_left(s.integer(5, "pad left", 0, kSize)) {
    s.require(x.c() == y.c(), "has tensors with different channel counts");
    const auto meets = [](int64_t out, int stride, int pad, int kernel, int64_t in) { return pad < kernel && (out - 1) * stride - pad < in; };
    s.require(meets(y.h(), sh, pad_top, kh, x.h()) && meets(y.w(), sw, pad_left, kw, x.w()), "has a window that lies outside its input");
  }

  int64_t positions(const Source& s) const {
    const int64_t n = int64_t(kh) * kw;
    s.require(n <= 1 << 22, "has a window of more than 4 million positions");
    return n;
  }

  // The most positions that a window has inside the image.
  double area(const View& x) const { return double(std::min(kh, x.h())) * std::min(kw, x.w()); }
};

}  // namespace rw
