// conv_f32 of the portable path; see conv_f32.h.
#include "conv_f32.h"

namespace rw {
const ConvKernel conv_f32_portable = {conv_bytes, conv_pack, conv_run, kMaxPixels};
}
