// What an operation is to the executor, and what an operation is made from.
#pragma once
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "engine/memory.h"
#include "engine/plan.h"
#include "kernels/kernels.h"

namespace rw {

// Where the spaces lie during a run: arena, constants, then the inputs, then the outputs.
using Bases = uint8_t* const*;

// A tensor whose place is known up to the base of its space.
struct View {
  Tensor t;
  int base = 0;

  uint8_t* at(Bases bases) const { return bases[base] + t.offset; }
  int64_t step(int dim) const { return t.strides[dim] * t.element(); }      // bytes
  int h() const { return static_cast<int>(t.dims[0]); }
  int w() const { return static_cast<int>(t.dims[1]); }
  int c() const { return static_cast<int>(t.dims[2]); }
  Image image(Bases bases) const { return {at(bases), step(0), step(1), h(), w(), c()}; }
};

// Works on ranges of `units`, which the executor chooses as multiples of `grain`. Ranges may run at the same time on
// different threads. The executor writes the border of `written` beside the units that complete its rows.
class Operation {
 public:
  virtual ~Operation() = default;
  virtual void run(Bases bases, int64_t begin, int64_t end, int thread) = 0;

  View written;
  int64_t units = 1, grain = 1;
  int64_t units_per_row = 0;   // units that make one row of `written`; 0: no such number, the border is written at once
  double cost = 0;             // nanoseconds on one core, very roughly: short operations are not cut
  int64_t macs = 0;
  size_t weight_bytes = 0;
  size_t scratch_bytes = 0;    // that each thread needs; the executor provides the largest of all
  std::vector<uint8_t*> scratch;  // per thread, 64-byte aligned
};

// An operation of the plan with everything that is needed to check and to make it.
struct Source {
  const PlanOp& op;
  const Kernels& kernels;
  std::vector<View> tensors;
  int threads = 1;
  int winograd = -1;           // -1: by the rule; 0: never; 2, 4: that tile
  size_t weight_limit = 0;     // bytes that packed weights may still take

  [[noreturn]] void refuse(const std::string& why) const {
    fail("Operation `" + op.name + "` (" + op_name(op.code) + ") " + why + ".");
  }
  void require(bool condition, const char* why) const {
    if (!condition) refuse(why);
  }

  int integer(int i, const char* name, int low, int high) const {
    const int value = op.attributes[i];
    if (value < low || value > high)
      refuse("has " + std::string(name) + " = " + std::to_string(value) + ", outside " + std::to_string(low) + ".." + std::to_string(high));
    return value;
  }
  float real(int i, const char* name, double limit = 3.4e38) const {
    float value;
    std::memcpy(&value, &op.attributes[i], 4);
    if (!(std::fabs(value) <= limit)) refuse("has the attribute " + std::string(name) + ", which is not finite or too large");
    return value;
  }

  // A copy, as files align nothing. count < 0: any number.
  template <class T>
  std::vector<T> blob(int i, const char* name, int64_t count) const {
    const Bytes bytes = op.blobs[i];
    if (bytes.size != static_cast<uint64_t>(count) * sizeof(T))
      refuse("has " + std::to_string(bytes.size) + " bytes of " + name + " and needs " + std::to_string(count * int64_t(sizeof(T))));
    std::vector<T> values(static_cast<size_t>(count));
    if (count) std::memcpy(values.data(), bytes.data, bytes.size);
    return values;
  }
  std::vector<int32_t> integers(int i, const char* name, int64_t count, int low, int high) const {
    auto values = blob<int32_t>(i, name, count);
    for (int v : values)
      if (v < low || v > high) refuse("has " + std::to_string(v) + " among its " + name + ", outside " + std::to_string(low) + ".." + std::to_string(high));
    return values;
  }
  std::vector<float> reals(int i, const char* name, int64_t count, double limit = 3.4e38) const {
    auto values = blob<float>(i, name, count);
    for (float v : values)
      if (!(std::fabs(v) <= limit)) refuse("has a number among its " + std::string(name) + " that is not finite or too large");
    return values;
  }

  // An image: (H, W, C) with dense channels.
  const View& image(int i, const char* name, Dtype dtype) const {
    const View& v = tensors[i];
    if (v.t.rank != 3 || (v.t.strides[2] != 1 && v.t.dims[2] != 1)) refuse("needs " + std::string(name) + " as (H, W, C) with dense channels");
    if (v.t.dtype != dtype) refuse("has the wrong type for " + std::string(name));
    return v;
  }
  const View& tensor(int i, const char* name, Dtype dtype) const {
    if (tensors[i].t.dtype != dtype) refuse("has the wrong type for " + std::string(name));
    return tensors[i];
  }
  void same_dims(const View& a, const View& b) const {
    bool same = a.t.rank == b.t.rank;
    for (int i = 0; same && i < a.t.rank; i++) same = a.t.dims[i] == b.t.dims[i];
    require(same, "has tensors of different sizes");
  }
};

// Checks the operation against its tensors, attributes and blobs; packs its weights. Throws Error.
std::unique_ptr<Operation> make_operation(const Source& source);

}  // namespace rw
