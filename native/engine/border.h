// The border of an image: pixels around (H, W) that hold a constant, one value or one per channel.
#pragma once
#include "engine/op.h"

namespace rw {

// Writes the left and right border of rows [begin, end), and on request the rows above and below the image.
void fill_border(const View& view, Bases bases, int64_t begin, int64_t end, bool above, bool below);

// The same for a range of units of an operation: borders of the rows that the range completes.
inline void fill_border_of(const Operation& op, Bases bases, int64_t begin, int64_t end) {
  if (!op.written.t.has_border()) return;
  const int64_t rows = op.written.t.dims[0];
  if (op.units_per_row == 0) {
    if (begin == 0) fill_border(op.written, bases, 0, rows, true, true);
    return;
  }
  fill_border(op.written, bases, begin / op.units_per_row, end / op.units_per_row, begin == 0, end == op.units);
}

}  // namespace rw
