#include "engine/plan.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "engine/error.h"

namespace rw {
namespace {

constexpr uint64_t kHeader = 128, kTensor = 144;
constexpr int64_t kDimension = int64_t(1) << 28;   // of one dimension: a product of two fits into 64 bits with room
constexpr int64_t kStride = int64_t(1) << 34;

struct OpRow {
  const char* name;
  size_t tensors, attributes, blobs;
};

const OpRow* op_row(int code) {
  switch (code) {
#define ROADWORTHY_OP(code, name, tensors, attributes, blobs)     \
  case code: {                                                    \
    static constexpr OpRow row = {#name, tensors, attributes, blobs}; \
    return &row;                                                  \
  }
#include "engine/opcodes.inc"
#undef ROADWORTHY_OP
  }
  return nullptr;
}

// Reads little-endian numbers from a section; whatever does not fit is an error that names the place.
class Reader {
 public:
  Reader(Bytes file, uint64_t at, std::string what) : file_(file), at_(at), what_(std::move(what)) {}

  template <class T>
  T take() {
    T value;
    std::memcpy(&value, bytes(sizeof(T)), sizeof(T));
    return value;
  }

  const uint8_t* bytes(uint64_t count) {
    if (at_ > file_.size || count > file_.size - at_) fail("The plan ends inside " + what_ + "; the file is truncated or damaged.");
    const uint8_t* p = file_.data + at_;
    at_ += count;
    return p;
  }

  void skip_padding(uint64_t count) { bytes((4 - count % 4) % 4); }
  void name(std::string what) { what_ = std::move(what); }

 private:
  Bytes file_;
  uint64_t at_;
  std::string what_;
};

std::string text_of(Reader& reader, uint64_t length) {
  std::string text(reinterpret_cast<const char*>(reader.bytes(length)), length);
  reader.skip_padding(length);
  return text;
}

struct Header {
  uint64_t arena_bytes, tensors_at, ops_at, ports_at, data_at, data_bytes, text_at;
  uint32_t tensors, ops, inputs, outputs, text_bytes;
};

Header read_header(Bytes file) {
  if (file.size < kHeader || std::memcmp(file.data, "RWPL", 4) != 0)
    fail("This is not a plan file: it does not start with a plan's 128-byte header.");
  Reader r(file, 4, "the header");
  const auto version = r.take<uint32_t>();
  if (version != 1) fail("The plan has version " + std::to_string(version) + " and this engine reads version 1; lower the model again.");
  if (r.take<uint64_t>() != file.size) fail("The plan's size is not the one in its header; the file is truncated or damaged.");
  if (r.take<uint32_t>() != crc32({file.data + 20, file.size - 20})) fail("The plan's checksum is wrong; the file is damaged.");
  Header h{};
  (void)r.take<uint32_t>();
  h.arena_bytes = r.take<uint64_t>();
  h.tensors_at = r.take<uint64_t>();
  h.tensors = r.take<uint32_t>();
  h.ops = r.take<uint32_t>();
  h.ops_at = r.take<uint64_t>();
  h.ports_at = r.take<uint64_t>();
  h.inputs = r.take<uint32_t>();
  h.outputs = r.take<uint32_t>();
  h.data_at = r.take<uint64_t>();
  h.data_bytes = r.take<uint64_t>();
  h.text_at = r.take<uint64_t>();
  h.text_bytes = r.take<uint32_t>();
  if (h.arena_bytes > kLargest) fail("The plan wants an arena of more than 4 GiB.");
  if (h.data_at > file.size || h.data_bytes > file.size - h.data_at) fail("The plan's data section lies outside the file.");
  if (h.text_at > file.size || h.text_bytes > file.size - h.text_at) fail("The plan's text section lies outside the file.");
  // A record takes at least so many bytes, which bounds what is allocated by the size of the file.
  if (h.tensors > file.size / kTensor || h.ops > file.size / 12 || h.inputs > 1024 || h.outputs > 1024)
    fail("The plan's header counts more records than the file can hold.");
  return h;
}

Bytes span_of(Bytes data, uint64_t at, uint64_t bytes, const std::string& what) {
  if (at > data.size || bytes > data.size - at) fail(what + " lies outside the plan's data section.");
  return {data.data + at, static_cast<size_t>(bytes)};
}

Tensor read_tensor(Reader& r, Bytes data, const std::string& what) {
  Tensor t{};
  const int dtype = r.take<uint8_t>(), space = r.take<uint8_t>();
  t.rank = r.take<uint8_t>();
  (void)r.take<uint8_t>();
  const auto index = r.take<uint32_t>();
  t.offset = r.take<int64_t>();
  for (auto& d : t.dims) d = r.take<int32_t>();
  (void)r.take<uint32_t>();
  for (auto& s : t.strides) s = r.take<int64_t>();
  for (auto& b : t.border) b = r.take<int32_t>();
  const auto fill_at = r.take<uint64_t>(), fill_bytes = r.take<uint64_t>();
  r.bytes(kTensor - 112);
  if (dtype > 2) fail(what + " has the unknown type " + std::to_string(dtype) + ".");
  if (space > 3) fail(what + " has the unknown space " + std::to_string(space) + ".");
  if (t.rank < 1 || t.rank > 5) fail(what + " has rank " + std::to_string(t.rank) + "; 1 to 5 are possible.");
  t.dtype = static_cast<Dtype>(dtype);
  t.space = static_cast<Space>(space);
  t.index = static_cast<int>(index & 0x7fffffff);
  for (int i = t.rank; i < 5; i++) t.dims[i] = 1, t.strides[i] = 0;
  int64_t count = 1;
  for (int i = 0; i < t.rank; i++) {
    if (t.dims[i] < 1 || t.dims[i] > kDimension) fail(what + " has a dimension of " + std::to_string(t.dims[i]) + ".");
    if (t.strides[i] < -kStride || t.strides[i] > kStride) fail(what + " has a stride of " + std::to_string(t.strides[i]) + ".");
    count *= t.dims[i];
    if (count > int64_t(kLargest)) fail(what + " has more than 2^32 elements.");
  }
  for (int b : t.border)
    if (b < 0 || b > 1 << 16 || (b && t.rank != 3)) fail(what + " has a border that is negative, too wide, or not around an image.");
  if (t.has_border() && t.strides[2] != 1 && t.dims[2] != 1) fail(what + " has a border, but its channels are not dense.");
  if (t.has_border() && t.space != Space::arena) fail(what + " has a border, but lies outside the arena.");
  t.fill = span_of(data, fill_at, t.has_border() ? fill_bytes : 0, "The border of " + what);
  const auto elements = static_cast<int64_t>(t.fill.size) / t.element();
  if (t.has_border() && (t.fill.size % t.element() != 0 || (elements != 1 && elements != t.dims[2])))
    fail(what + " has a border filled by " + std::to_string(t.fill.size) + " bytes; one element, or one per channel, is needed.");
  return t;
}

// [low, high) in bytes. Dimensions below 2^28 and strides to 2^34 keep every sum of five products inside 64 bits.
void measure(Tensor& t, uint64_t space_bytes, const std::string& what) {
  if (t.offset < 0 || t.offset > int64_t(kLargest)) fail(what + " starts outside its space.");
  const int64_t before[5] = {t.border[0], t.border[1]}, behind[5] = {t.border[2], t.border[3]};
  int64_t low = 0, high = 1;  // in elements
  for (int i = 0; i < t.rank; i++) {
    const int64_t first = -before[i] * t.strides[i], last = (t.dims[i] - 1 + behind[i]) * t.strides[i];
    low += first < last ? first : last;
    high += first < last ? last : first;
    if (low < -kStride || high > kStride) fail(what + " reaches outside its space.");
  }
  t.low = t.offset + low * t.element();
  t.high = t.offset + high * t.element();
  if (t.low < 0 || t.high > static_cast<int64_t>(space_bytes)) fail(what + " reaches outside its space.");
  if (t.offset % t.element() != 0) fail(what + " is not aligned to its elements.");
}

PlanOp read_op(Reader& r, const Plan& plan, const std::string& what) {
  PlanOp op;
  const int code = r.take<uint16_t>();
  const int tensors = r.take<uint16_t>(), attributes = r.take<uint16_t>(), blobs = r.take<uint16_t>(), length = r.take<uint16_t>();
  (void)r.take<uint16_t>();
  const OpRow* row = op_row(code);
  if (!row) fail(what + " has the unknown code " + std::to_string(code) + "; the plan needs a newer engine.");
  if (row->tensors != size_t(tensors) || row->attributes != size_t(attributes) || row->blobs != size_t(blobs))
    fail(what + " (" + row->name + ") does not have the number of tensors, attributes and blobs of its kind.");
  op.code = static_cast<OpCode>(code);
  for (int i = 0; i < tensors; i++) {
    const auto id = r.take<int32_t>();
    if (id < 0 || static_cast<size_t>(id) >= plan.tensors.size()) fail(what + " (" + row->name + ") names tensor " + std::to_string(id) + ", which the plan does not have.");
    op.tensors.push_back(id);
  }
  for (int i = 0; i < attributes; i++) op.attributes.push_back(r.take<int32_t>());
  for (int i = 0; i < blobs; i++) {
    const auto at = r.take<uint64_t>(), bytes = r.take<uint64_t>();
    op.blobs.push_back(span_of(plan.data, at, bytes, "A blob of " + what));
  }
  op.name = text_of(r, length);
  return op;
}

Port read_port(Reader& r, const Plan& plan, const std::string& what) {
  Port port;
  port.tensor = r.take<int32_t>();
  const auto rank = r.take<uint32_t>();
  if (rank > 6) fail(what + " has rank " + std::to_string(rank) + "; up to 6 are possible.");
  int64_t count = 1;
  for (uint32_t i = 0; i < 6; i++) {
    const auto d = r.take<int64_t>();
    if (i >= rank) continue;
    if (d < 1 || d > kDimension) fail(what + " has a dimension of " + std::to_string(d) + ".");
    count *= d;
    if (count > int64_t(kLargest / 4)) fail(what + " has more than 4 GiB.");
    port.dims.push_back(d);
  }
  port.name = text_of(r, r.take<uint32_t>());
  if (port.tensor < 0 || static_cast<size_t>(port.tensor) >= plan.tensors.size()) fail(what + " names a tensor that the plan does not have.");
  return port;
}

uint64_t space_bytes(const Plan& plan, const Tensor& t, const std::string& what) {
  if (t.space == Space::arena) return plan.arena_bytes;
  if (t.space == Space::constant) return plan.data.size;
  const auto& ports = t.space == Space::input ? plan.inputs : plan.outputs;
  if (static_cast<size_t>(t.index) >= ports.size()) fail(what + " belongs to an input or output that the plan does not have.");
  if (t.dtype != Dtype::f32) fail(what + " is an input or output, but not float32.");
  return static_cast<uint64_t>(ports[t.index].count()) * 4;
}

}  // namespace

int64_t Tensor::count() const {
  int64_t n = 1;
  for (int i = 0; i < rank; i++) n *= dims[i];
  return n;
}

int64_t Port::count() const {
  int64_t n = 1;
  for (auto d : dims) n *= d;
  return n;
}

const char* op_name(OpCode code) {
  const OpRow* row = op_row(static_cast<int>(code));
  return row ? row->name : "?";
}

uint32_t crc32(Bytes bytes) {
  // Eight tables (slicing by 8): a plan of some MB takes a millisecond, not ten.
  static const auto tables = [] {
    std::array<std::array<uint32_t, 256>, 8> t{};
    for (uint32_t i = 0; i < 256; i++) {
      uint32_t c = i;
      for (int k = 0; k < 8; k++) c = (c >> 1) ^ (c & 1 ? 0xEDB88320u : 0);
      t[0][i] = c;
    }
    for (uint32_t i = 0; i < 256; i++)
      for (size_t k = 1; k < 8; k++) t[k][i] = (t[k - 1][i] >> 8) ^ t[0][t[k - 1][i] & 255];
    return t;
  }();
  uint32_t c = ~0u;
  const uint8_t* p = bytes.data;
  size_t n = bytes.size;
  for (; n >= 8; n -= 8, p += 8) {
    uint32_t a, b;
    std::memcpy(&a, p, 4);
    std::memcpy(&b, p + 4, 4);
    a ^= c;
    c = tables[7][a & 255] ^ tables[6][a >> 8 & 255] ^ tables[5][a >> 16 & 255] ^ tables[4][a >> 24] ^
        tables[3][b & 255] ^ tables[2][b >> 8 & 255] ^ tables[1][b >> 16 & 255] ^ tables[0][b >> 24];
  }
  for (; n; n--) c = (c >> 8) ^ tables[0][(c ^ *p++) & 255];
  return ~c;
}

// Bytes that a blob of packed weights takes when it is expanded, at most.
static uint64_t unpacked_bytes(const PlanOp& op) {
  const bool weighted = op.code == OpCode::CONV || op.code == OpCode::DEPTHWISE;
  if (!weighted || op.attributes[kWeightKind] < kPackedKind || op.blobs[0].size == 0) return 0;
  const uint64_t bits = op.blobs[0].data[0];
  return bits >= 1 && bits < 8 ? static_cast<uint64_t>(op.blobs[0].size) * 8 / bits : 0;   // others are refused later
}

// A small file must not ask for much memory: constants are copied for each operation that names them, and a caller makes room
// for all inputs and outputs together.
static void check_volume(const Plan& plan) {
  uint64_t copied = 0, ported = 0;
  for (const auto& op : plan.ops) {
    for (const Bytes& blob : op.blobs) copied += blob.size;
    copied += unpacked_bytes(op);
    for (int tensor : op.tensors)
      if (tensor >= 0 && static_cast<size_t>(tensor) < plan.tensors.size()) copied += plan.tensors[static_cast<size_t>(tensor)].fill.size;
  }
  if (copied > 8 * static_cast<uint64_t>(plan.data.size) + (uint64_t{16} << 20))
    fail("The plan names the same constants so often that they would fill " + std::to_string(copied >> 20) + " MB.");
  for (const auto* ports : {&plan.inputs, &plan.outputs})
    for (const auto& port : *ports) ported += static_cast<uint64_t>(port.count()) * 4;
  if (ported > uint64_t{1} << 30) fail("The inputs and outputs of the plan take more than 1 GiB together.");
}

// A result's elements lie in places of their own, so that no operation writes more than its space holds: from the smallest stride
// up, each is larger than the extent of those before it.
static void check_result(const Plan& plan, const PlanOp& op) {
  const int id = op.tensors.back();
  const Tensor& t = plan.tensors[static_cast<size_t>(id)];
  std::array<std::pair<int64_t, int64_t>, 5> steps{};   // stride, dimension
  size_t count = 0;
  for (int i = 0; i < t.rank; i++)
    if (t.dims[i] > 1) steps[count++] = {std::abs(t.strides[i]), t.dims[i]};
  std::sort(steps.begin(), steps.begin() + static_cast<std::ptrdiff_t>(count));
  int64_t extent = 0;
  for (size_t i = 0; i < count; i++) {
    if (steps[i].first <= extent)
      fail("Operation `" + op.name + "` (" + op_name(op.code) + ") writes tensor " + std::to_string(id) + ", whose elements overlap each other in memory.");
    extent += (steps[i].second - 1) * steps[i].first;
  }
}

// Every element of an output is written: what is not would be whatever the caller's memory held.
static void check_outputs(const Plan& plan) {
  std::vector<bool> seen(plan.tensors.size());
  std::vector<int64_t> written(plan.outputs.size());
  for (const auto& op : plan.ops) {
    const auto id = static_cast<size_t>(op.tensors.back());
    const Tensor& t = plan.tensors[id];
    if (t.space == Space::output && !seen[id]) written[static_cast<size_t>(t.index)] += t.count();
    seen[id] = true;
  }
  for (size_t i = 0; i < plan.outputs.size(); i++) {
    const Port& port = plan.outputs[i];
    if (written[i] < port.count())
      fail("Output " + std::to_string(i) + " `" + port.name + "` (tensor " + std::to_string(port.tensor) + ") has " + std::to_string(port.count()) +
           " elements, of which the operations write " + std::to_string(written[i]) + ".");
  }
}

Plan read_plan(Bytes file) {
  const Header h = read_header(file);
  Plan plan;
  plan.arena_bytes = h.arena_bytes;
  plan.data = {file.data + h.data_at, static_cast<size_t>(h.data_bytes)};
  plan.text.assign(reinterpret_cast<const char*>(file.data + h.text_at), h.text_bytes);

  Reader tensors(file, h.tensors_at, "the tensors");
  plan.tensors.reserve(h.tensors);
  for (uint32_t i = 0; i < h.tensors; i++) plan.tensors.push_back(read_tensor(tensors, plan.data, "Tensor " + std::to_string(i)));

  Reader ports(file, h.ports_at, "the inputs and outputs");
  for (uint32_t i = 0; i < h.inputs; i++) plan.inputs.push_back(read_port(ports, plan, "Input " + std::to_string(i)));
  for (uint32_t i = 0; i < h.outputs; i++) plan.outputs.push_back(read_port(ports, plan, "Output " + std::to_string(i)));

  for (size_t i = 0; i < plan.tensors.size(); i++) {
    const std::string what = "Tensor " + std::to_string(i);
    measure(plan.tensors[i], space_bytes(plan, plan.tensors[i], what), what);
  }

  Reader ops(file, h.ops_at, "the operations");
  plan.ops.reserve(h.ops);
  for (uint32_t i = 0; i < h.ops; i++) plan.ops.push_back(read_op(ops, plan, "Operation " + std::to_string(i)));
  check_volume(plan);
  for (const auto& op : plan.ops) check_result(plan, op);
  check_outputs(plan);
  return plan;
}

}  // namespace rw
