// Loops over strided operands of the same dimensions.
//
// A Nest orders the dimensions (a chosen one innermost, the others by the steps of the result), joins neighbours that are one
// stretch of memory for every operand, and walks ranges of the outermost one. A constant per channel is an operand too,
// with step 0 in every other dimension; so it is never joined away.
#pragma once
#include <algorithm>
#include <vector>

#include "engine/op.h"

namespace rw {

constexpr int kOperands = 5;

struct Loop {
  int64_t n = 1;
  int64_t step[kOperands] = {};
};

class Nest {
 public:
  // `result`: the operand whose steps give the order. inner: the last `inner` loops are handed to the callback of walk().
  // keep_first: the first loop stays as it is, as units are its rows.
  Nest(std::vector<Loop> loops, int result, const std::vector<int>& innermost, bool keep_first);

  int64_t units() const { return loops_.front().n; }
  bool flat() const { return static_cast<int>(loops_.size()) == inner_; }
  const Loop& loop(int from_last) const { return loops_[loops_.size() - 1 - from_last]; }

  // Calls f(offsets, n): offsets of each operand, and the length of the first of the inner loops there.
  template <class F>
  void walk(int64_t begin, int64_t end, F f) const {
    int64_t offset[kOperands];
    for (int k = 0; k < kOperands; k++) offset[k] = begin * loops_[0].step[k];
    if (flat()) return f(static_cast<const int64_t*>(offset), end - begin);
    const int outer = static_cast<int>(loops_.size()) - inner_;
    int64_t index[8] = {begin};
    for (;;) {
      f(static_cast<const int64_t*>(offset), loops_[outer].n);
      int d = outer - 1;
      for (; d >= 0; d--) {
        for (int k = 0; k < kOperands; k++) offset[k] += loops_[d].step[k];
        if (++index[d] < (d == 0 ? end : loops_[d].n)) break;
        if (d == 0) return;
        for (int k = 0; k < kOperands; k++) offset[k] -= loops_[d].step[k] * loops_[d].n;
        index[d] = 0;
      }
    }
  }

 private:
  std::vector<Loop> loops_;
  int inner_;
};

// The loops of tensors of the same dimensions; steps in bytes.
std::vector<Loop> loops_of(const std::vector<const View*>& views);

// The loop where `score` is largest, among those that may be innermost; -1 where every score is below 0.
template <class F>
int best_loop(const std::vector<Loop>& loops, bool keep_first, F score) {
  int best = -1;
  double most = -1;
  for (int d = keep_first ? 1 : 0; d < static_cast<int>(loops.size()); d++) {
    const double value = loops[d].n == 1 ? -1 : score(loops[d]);
    if (value > most) most = value, best = d;
  }
  return best;
}

// An operation that walks a nest.
class Walker : public Operation {
 public:
  Walker(Nest nest, const View& y, double ns_per_element) : nest_(std::move(nest)) {
    units = nest_.units();
    grain = nest_.flat() ? 256 : 1;
    cost = double(y.t.count()) * ns_per_element;
    if (y.t.has_border()) units_per_row = 1, grain = 1;
  }

 protected:
  Nest nest_;
};

}  // namespace rw
