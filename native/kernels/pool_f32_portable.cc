// maxpool_f32, avgpool_f32 and linear_f32 of the portable path; see pool_f32.h.
#include "pool_f32.h"

namespace rw {
const PoolFn maxpool_f32_portable = maxpool_rows;
const PoolFn avgpool_f32_portable = avgpool_rows;
const LinearFn linear_f32_portable = linear_rows;
}
