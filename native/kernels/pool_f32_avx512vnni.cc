// maxpool_f32, avgpool_f32 and linear_f32 of the avx512vnni path; see pool_f32.h.
#include "pool_f32.h"

namespace rw {
const PoolFn maxpool_f32_avx512vnni = maxpool_rows;
const PoolFn avgpool_f32_avx512vnni = avgpool_rows;
const LinearFn linear_f32_avx512vnni = linear_rows;
}
