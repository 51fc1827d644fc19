// conv_f32 of the avx512vnni path; see conv_f32.h.
#include "conv_f32.h"

namespace rw {
const ConvKernel conv_f32_avx512vnni = {conv_bytes, conv_pack, conv_run, kMaxPixels};
}
