// unary_f32, binary_f32 and softmax_f32 of the avx512vnni path; see elementwise_f32.h.
#include "elementwise_f32.h"

namespace rw {
const UnaryFn unary_f32_avx512vnni = unary_run;
const BinaryFn binary_f32_avx512vnni = binary_run;
const SoftmaxFn softmax_f32_avx512vnni = softmax_run;
}
