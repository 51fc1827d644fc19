// The fixed-point form, portable.
#include "fixed_plain.h"

namespace rw {

const FixedKernel fixed_portable = {fixed_packed_bytes, fixed_pack, fixed_run};
const AddFixedFn add_fixed_portable = fixed_add;
const MulFixedFn mul_fixed_portable = fixed_mul;
const PoolFixedFn avgpool_fixed_portable = fixed_avgpool;
const LinearFixedFn linear_fixed_portable = fixed_linear;

}  // namespace rw
