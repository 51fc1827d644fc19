// One maker per operation: checks what the plan says and gives something that runs.
#pragma once
#include "engine/op.h"

namespace rw {

using Made = std::unique_ptr<Operation>;

Made make_conv(const Source& source);        // CONV and DEPTHWISE
Made make_add(const Source& source);
Made make_mul(const Source& source);
Made make_pool(const Source& source);        // MAXPOOL and AVGPOOL
Made make_nearest(const Source& source);
Made make_linear(const Source& source);
Made make_table(const Source& source);
Made make_copy(const Source& source);
Made make_gather(const Source& source);
Made make_quantize(const Source& source);
Made make_dequantize(const Source& source);
Made make_unary(const Source& source);
Made make_binary(const Source& source);
Made make_softmax(const Source& source);
Made make_add_fixed(const Source& source);
Made make_mul_fixed(const Source& source);
Made make_pool_fixed(const Source& source);
Made make_linear_fixed(const Source& source);

constexpr int kUnaryFunctions = 21, kBinaryFunctions = 6;   // the last codes of docs/engine.md
constexpr int kSize = 1 << 20;                              // largest kernel, stride, padding, dilation

}  // namespace rw
