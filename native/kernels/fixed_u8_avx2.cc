// The fixed-point form, AVX2, as the compiler makes it.
#include "fixed_plain.h"

namespace rw {

const FixedKernel fixed_avx2 = {fixed_packed_bytes, fixed_pack, fixed_run};
const AddFixedFn add_fixed_avx2 = fixed_add;
const MulFixedFn mul_fixed_avx2 = fixed_mul;
const PoolFixedFn avgpool_fixed_avx2 = fixed_avgpool;
const LinearFixedFn linear_fixed_avx2 = fixed_linear;

}  // namespace rw
