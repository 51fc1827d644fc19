// Class probabilities from the one output that has them.
#include <algorithm>
#include <cmath>
#include <string>

#include "detect/decode.h"
#include "engine/error.h"

namespace rw {

Classifier::Classifier(const DecodeSpec& spec, const std::vector<OutputPort>& ports) : spec_(spec) {
  const int64_t columns = spec.num_classes + (spec.has_background ? 1 : 0);
  const std::vector<int> chosen = choose_outputs(spec, ports);
  int matches = 0;
  for (int i : chosen) {
    const OutputPort& port = ports[static_cast<size_t>(i)];
    const int64_t count = port.count();
    const bool line = !port.dims.empty() && count == *std::max_element(port.dims.begin(), port.dims.end());
    if (!line || (spec.num_classes && count != columns)) continue;
    ++matches;
    output_ = i;
    port_ = port;
  }
  if (matches != 1) refuse_outputs(spec, ports, chosen, "one of (1, " + (spec.num_classes ? std::to_string(columns) : "C") + ")");
  if (!spec.has_background) return;
  const int64_t count = port_.count();
  if (spec_.background < -count || spec_.background >= count)
    fail(spec.kind + ": background column " + std::to_string(spec.background) + " does not exist among " + std::to_string(count) + " columns");
  if (spec_.background < 0) spec_.background += static_cast<int>(count);
}

const std::vector<float>& Classifier::run(const float* const* outputs) {
  const float* x = outputs[output_];
  const int64_t n = port_.count();
  for (int64_t i = 0; i < n; ++i)
    if (std::isnan(x[i])) fail("output '" + port_.name + "' holds NaN; the model is broken or was fed a wrong input");
  scores_.resize(static_cast<size_t>(n));
  if (spec_.scores_are_logits) softmax(x, 1, static_cast<int>(n), scores_.data());
  else std::copy(x, x + n, scores_.begin());
  if (spec_.has_background) scores_.erase(scores_.begin() + spec_.background);
  return scores_;
}

}  // namespace rw
