// unary_f32, binary_f32 and softmax_f32 of the avx2 path; see elementwise_f32.h.
#include "elementwise_f32.h"

namespace rw {
const UnaryFn unary_f32_avx2 = unary_run;
const BinaryFn binary_f32_avx2 = binary_run;
const SoftmaxFn softmax_f32_avx2 = softmax_run;
}
