// What the makers of the fixed-point form share.
#pragma once
#include <vector>

#include "ops/ops.h"

namespace rw {

// Multipliers and shifts from two blobs: 0 <= M < 2^31 and 2 <= S <= 62; M is normalized (2^30 or more) unless S is 62. Entries in
// front of `first` are never used, and replaced by 0 and 2.
struct FixedScales {
  std::vector<int32_t> m, s;

  FixedScales() = default;
  FixedScales(const Source& source, std::vector<int32_t> multipliers, std::vector<int32_t> shifts, const char* name, size_t first = 0);
};

}  // namespace rw
