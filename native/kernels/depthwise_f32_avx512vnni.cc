// depthwise_f32 of the avx512vnni path; see depthwise_f32.h.
#include "depthwise_f32.h"

namespace rw {
const DepthwiseKernel depthwise_f32_avx512vnni = {depthwise_bytes, depthwise_pack, depthwise_run};
}
