// depthwise_f32 of the avx2 path; see depthwise_f32.h.
#include "depthwise_f32.h"

namespace rw {
const DepthwiseKernel depthwise_f32_avx2 = {depthwise_bytes, depthwise_pack, depthwise_run};
}
