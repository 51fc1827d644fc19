// A plan file in memory: read, and checked as far as it can be without knowing what an operation does. docs/engine.md
// describes the file. The operations check their own tensors, attributes and blobs when they are made (native/ops).
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace rw {

enum class Dtype : int { u8 = 0, f32 = 1, i32 = 2 };
enum class Space : int { arena = 0, input = 1, output = 2, constant = 3 };

enum class OpCode : int {
#define ROADWORTHY_OP(code, name, tensors, attributes, blobs) name = code,
#include "opcodes.inc"
#undef ROADWORTHY_OP
};

const char* op_name(OpCode code);

constexpr int64_t kSlack = 128;                    // bytes behind the arena and the constants that kernels may read
constexpr uint64_t kLargest = uint64_t(4) << 30;   // of an arena, of all packed weights, of one input or output

// Of CONV and DEPTHWISE: the attribute that says how their first blob holds weights; from kPackedKind up it is packed.
constexpr size_t kWeightKind = 17;
constexpr int kPackedKind = 16, kMostPackedBits = 7;

// Bytes that belong to whoever owns the file.
struct Bytes {
  const uint8_t* data = nullptr;
  size_t size = 0;
};

struct Tensor {
  Dtype dtype;
  Space space;
  int rank;
  int index;              // of the graph input or output
  int64_t offset;         // bytes, of element (0, .., 0)
  int64_t dims[5];
  int64_t strides[5];     // elements
  int border[4];          // top, left, bottom, right
  Bytes fill;             // what the border holds: elements, 1 or one per channel
  int64_t low, high;      // bytes [low, high) within its space that the tensor touches, border included

  int64_t element() const { return dtype == Dtype::u8 ? 1 : 4; }
  bool has_border() const { return (border[0] | border[1] | border[2] | border[3]) != 0; }
  int64_t count() const;
};

struct PlanOp {
  OpCode code;
  std::string name;
  std::vector<int> tensors;
  std::vector<int32_t> attributes;
  std::vector<Bytes> blobs;
};

struct Port {
  int tensor;
  std::string name;
  std::vector<int64_t> dims;
  int64_t count() const;
};

struct Plan {
  uint64_t arena_bytes = 0;
  std::vector<Tensor> tensors;
  std::vector<PlanOp> ops;
  std::vector<Port> inputs, outputs;
  Bytes data;             // the data section
  std::string text;
};

// Reads and checks a file. The plan points into `file`. Throws Error with one sentence.
Plan read_plan(Bytes file);

uint32_t crc32(Bytes bytes);

}  // namespace rw
