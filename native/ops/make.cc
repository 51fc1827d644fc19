#include "ops/ops.h"

namespace rw {

std::unique_ptr<Operation> make_operation(const Source& source) {
  switch (source.op.code) {
    case OpCode::CONV:
    case OpCode::DEPTHWISE: return make_conv(source);
    case OpCode::ADD: return make_add(source);
    case OpCode::MUL: return make_mul(source);
    case OpCode::MAXPOOL:
    case OpCode::AVGPOOL: return make_pool(source);
    case OpCode::RESIZE_NEAREST: return make_nearest(source);
    case OpCode::RESIZE_LINEAR: return make_linear(source);
    case OpCode::TABLE: return make_table(source);
    case OpCode::COPY: return make_copy(source);
    case OpCode::GATHER: return make_gather(source);
    case OpCode::QUANTIZE: return make_quantize(source);
    case OpCode::DEQUANTIZE: return make_dequantize(source);
    case OpCode::UNARY: return make_unary(source);
    case OpCode::BINARY: return make_binary(source);
    case OpCode::SOFTMAX: return make_softmax(source);
    case OpCode::ADD_FIXED: return make_add_fixed(source);
    case OpCode::MUL_FIXED: return make_mul_fixed(source);
    case OpCode::AVGPOOL_FIXED: return make_pool_fixed(source);
    case OpCode::RESIZE_LINEAR_FIXED: return make_linear_fixed(source);
  }
  source.refuse("is of no known kind");
}

}  // namespace rw
