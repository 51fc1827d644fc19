#include "ops/nest.h"

namespace rw {

std::vector<Loop> loops_of(const std::vector<const View*>& views) {
  std::vector<Loop> loops(views[0]->t.rank);
  for (size_t d = 0; d < loops.size(); d++) {
    loops[d].n = views[0]->t.dims[d];
    for (size_t k = 0; k < views.size(); k++) loops[d].step[k] = views[k]->step(static_cast<int>(d));
  }
  return loops;
}

Nest::Nest(std::vector<Loop> loops, int result, const std::vector<int>& innermost, bool keep_first) : inner_(static_cast<int>(innermost.size())) {
  std::vector<int> order;
  for (int d = 0; d < static_cast<int>(loops.size()); d++) {
    const bool inner = std::find(innermost.begin(), innermost.end(), d) != innermost.end();
    if (!inner && (loops[d].n > 1 || (keep_first && d == 0))) order.push_back(d);
  }
  const auto far = [&](int a, int b) { return std::abs(loops[a].step[result]) > std::abs(loops[b].step[result]); };
  std::stable_sort(order.begin() + (keep_first && !order.empty() && order[0] == 0 ? 1 : 0), order.end(), far);
  const size_t outer = order.size();
  order.insert(order.end(), innermost.begin(), innermost.end());

  for (size_t i = 0; i < order.size(); i++) {
    const Loop& next = loops[order[i]];
    // Loops behind the first inner one keep their meaning for the callback.
    const bool fixed = i > outer || loops_.empty() || (keep_first && loops_.size() == 1);
    bool joined = !fixed;
    for (int k = 0; joined && k < kOperands; k++) joined = loops_.back().step[k] == next.step[k] * next.n;
    if (!joined) {
      loops_.push_back(next);
      continue;
    }
    Loop& last = loops_.back();
    last.n *= next.n;
    for (int k = 0; k < kOperands; k++) last.step[k] = next.step[k];
  }
}

}  // namespace rw
