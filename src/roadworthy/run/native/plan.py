"""`Plan`: what the engine runs, as plain data, and its file (`.rwp`), byte for byte as docs/engine.md lays it out.

    header | tensors | ops | ports | data | text          little-endian; CRC-32 over everything behind byte 20

Reading checks structure (counts, offsets, checksum); whether an operation makes sense is the engine's business, which
checks every shape against every buffer before it runs anything.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from roadworthy.errors import InputError

MAGIC = b"RWPL"
VERSION = 1
HEADER_BYTES = 128
TENSOR_BYTES = 144
MAX_RANK = 5
_FAR = 3e38
ALIGN = 64


class Op(IntEnum):
    """Operation codes of the table in docs/engine.md."""

    CONV = 1
    DEPTHWISE = 2
    ADD = 3
    MUL = 4
    MAXPOOL = 5
    AVGPOOL = 6
    RESIZE_NEAREST = 7
    RESIZE_LINEAR = 8
    TABLE = 9
    COPY = 10
    GATHER = 11
    QUANTIZE = 12
    DEQUANTIZE = 13
    UNARY = 14
    BINARY = 15
    SOFTMAX = 16
    ADD_FIXED = 17
    MUL_FIXED = 18
    AVGPOOL_FIXED = 19
    RESIZE_LINEAR_FIXED = 20


U8, F32, I32 = 0, 1, 2
DTYPE_BYTES = (1, 4, 4)
ARENA, INPUT, OUTPUT, CONSTANT = 0, 1, 2, 3


@dataclass(frozen=True)
class PlanTensor:
    """A strided view: offset in bytes of element (0,..,0) in its space, strides in elements.

    border: pixels top, left, bottom, right around (H, W), rank 3 only.   fill: elements the border holds, 1 or C.
    """

    dtype: int
    space: int
    offset: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    index: int = 0
    border: tuple[int, int, int, int] = (0, 0, 0, 0)
    fill: bytes = b""


@dataclass(frozen=True)
class PlanOp:
    """One operation; `attributes` are int32 (floats as their bits, see `float_bits`)."""

    code: Op
    tensors: tuple[int, ...]
    attributes: tuple[int, ...] = ()
    blobs: tuple[bytes, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Port:
    """An input or output of the network: its tensor, logical shape and name."""

    tensor: int
    dims: tuple[int, ...]
    name: str


@dataclass(frozen=True)
class Plan:
    """A lowered network.

    constants: what space 3 holds, at the start of the data section, a multiple of 64 bytes.
    text: the task, lines `key<TAB>value`.
    notes: what a person should know (layers in float and why); they are not part of the file.
    arena_unshared_bytes: what the arena would take without reuse; not part of the file either.
    """

    tensors: tuple[PlanTensor, ...]
    ops: tuple[PlanOp, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    arena_bytes: int
    constants: bytes = b""
    text: str = ""
    notes: tuple[str, ...] = field(default=(), compare=False)
    arena_unshared_bytes: int = field(default=0, compare=False)

    def to_bytes(self) -> bytes:
        return _write(self)

    @staticmethod
    def from_bytes(data: bytes) -> Plan:
        """Raises InputError when the bytes are not a plan, are damaged, or are of another version."""
        return _read(data)

    def describe(self) -> str:
        return describe(self)


def float_bits(x: float) -> int:
    """A float32 as the int32 of the same bits."""
    return int(struct.unpack("<i", struct.pack("<f", x))[0])


def function_bits(code: int, a: float, b: float) -> tuple[int, int, int]:
    """A function's code and parameters as attributes; those of a plan are finite, so that a bound that is not there
    becomes one that no value reaches."""
    return code, float_bits(min(max(a, -_FAR), _FAR)), float_bits(min(max(b, -_FAR), _FAR))


def bits_float(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<i", bits))[0])


def _padded(data: bytes, multiple: int) -> bytes:
    return data + bytes(-len(data) % multiple)


class _Data:
    """The data section under construction: equal blobs are stored once, each at a multiple of 64."""

    def __init__(self, constants: bytes) -> None:
        self.parts = [_padded(constants, ALIGN)]
        self.size = len(self.parts[0])
        self.known: dict[bytes, int] = {}

    def add(self, blob: bytes) -> tuple[int, int]:
        if not blob:
            return 0, 0
        at = self.known.get(blob)
        if at is None:
            at = self.known[blob] = self.size
            self.parts.append(_padded(blob, ALIGN))
            self.size += len(self.parts[-1])
        return at, len(blob)


def _write(plan: Plan) -> bytes:
    data = _Data(plan.constants)
    tensors = b"".join(_tensor_bytes(t, data) for t in plan.tensors)
    ops = b"".join(_op_bytes(op, data) for op in plan.ops)
    ports = b"".join(_port_bytes(p) for p in (*plan.inputs, *plan.outputs))
    text = plan.text.encode()
    tensors_at = HEADER_BYTES
    ops_at = tensors_at + len(tensors)
    ports_at = ops_at + len(ops)
    body = _padded(bytes(HEADER_BYTES) + tensors + ops + ports, ALIGN)
    data_at = len(body)
    section = b"".join(data.parts)
    text_at = data_at + len(section)
    total = text_at + len(text)
    header = struct.pack(
        "<4sIQIIQQIIQQIIQQQI", MAGIC, VERSION, total, 0, 0, plan.arena_bytes, tensors_at, len(plan.tensors),
        len(plan.ops), ops_at, ports_at, len(plan.inputs), len(plan.outputs), data_at, len(section), text_at, len(text),
    )  # fmt: skip
    whole = bytearray(header + body[len(header) :] + section + text)
    struct.pack_into("<I", whole, 16, zlib.crc32(bytes(whole[20:])))
    return bytes(whole)


def _tensor_bytes(tensor: PlanTensor, data: _Data) -> bytes:
    rank = len(tensor.dims)
    assert 1 <= rank <= MAX_RANK and len(tensor.strides) == rank, f"a tensor of rank {rank}"
    fill_at, fill_bytes = data.add(tensor.fill)
    missing = (0,) * (MAX_RANK - rank)
    return struct.pack(
        "<BBBBIq5iI5q4iQQ32x", tensor.dtype, tensor.space, rank, 0, tensor.index, tensor.offset,
        *tensor.dims, *missing, 0, *tensor.strides, *missing, *tensor.border, fill_at, fill_bytes,
    )  # fmt: skip


def _op_bytes(op: PlanOp, data: _Data) -> bytes:
    name = op.name.encode()[:1024]
    head = struct.pack("<6H", op.code, len(op.tensors), len(op.attributes), len(op.blobs), len(name), 0)
    numbers = struct.pack(f"<{len(op.tensors) + len(op.attributes)}i", *op.tensors, *op.attributes)
    blobs = b"".join(struct.pack("<QQ", *data.add(b)) for b in op.blobs)
    return head + numbers + blobs + _padded(name, 4)


def _port_bytes(port: Port) -> bytes:
    name = port.name.encode()
    dims = port.dims + (0,) * (6 - len(port.dims))
    return struct.pack("<iI6qI", port.tensor, len(port.dims), *dims, len(name)) + _padded(name, 4)


class _Reader:
    """A cursor that refuses to leave the file."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def bytes(self, at: int, size: int, what: str) -> bytes:
        if at < 0 or size < 0 or at + size > len(self.data):
            raise InputError(f"the plan is damaged: its {what} lie outside the file; compress the model again")
        return self.data[at : at + size]

    def unpack(self, form: str, at: int, what: str) -> tuple[int, ...]:
        return struct.unpack(form, self.bytes(at, struct.calcsize(form), what))


def _read(data: bytes) -> Plan:
    reader = _Reader(data)
    if data[:4] != MAGIC:
        raise InputError("this is not a plan: it does not begin with RWPL; give a .rwp file")
    (_, version, total, crc, zero, arena, tensors_at, tensor_count, op_count, ops_at, ports_at, inputs, outputs,
     data_at, data_bytes, text_at, text_bytes) = reader.unpack("<4sIQIIQQIIQQIIQQQI", 0, "header")  # fmt: skip
    if version != VERSION:
        raise InputError(f"the plan has version {version}; this program reads {VERSION}, so compress the model again")
    if zero:
        raise InputError("the plan is damaged: its header holds other than zeros where zeros belong; copy it again")
    if total != len(data) or len(data) < HEADER_BYTES:
        raise InputError(f"the plan is damaged: it has {len(data)} bytes and should have {total}; copy it again")
    if zlib.crc32(data[20:]) != crc:
        raise InputError("the plan is damaged: its checksum does not match; copy it again")
    reader.bytes(data_at, data_bytes, "data")
    tensors, lowest = [], data_bytes
    for k in range(tensor_count):
        tensor, fill_at = _read_tensor(reader, tensors_at + k * TENSOR_BYTES, data_at, data_bytes)
        lowest = min(lowest, fill_at)
        tensors.append(tensor)
    ops, at = [], ops_at
    for _ in range(op_count):
        op, at, first = _read_op(reader, at, data_at, data_bytes)
        lowest = min(lowest, first)
        ops.append(op)
    ports, at = [], ports_at
    for _ in range(inputs + outputs):
        port, at = _read_port(reader, at, tensor_count)
        ports.append(port)
    try:
        text = reader.bytes(text_at, text_bytes, "text lines").decode()
    except UnicodeDecodeError as error:
        raise InputError("the plan is damaged: its text is not UTF-8; compress the model again") from error
    # Constants stand in front of the first blob.
    constants = reader.bytes(data_at, lowest, "constants")
    return Plan(tuple(tensors), tuple(ops), tuple(ports[:inputs]), tuple(ports[inputs:]), arena, constants, text)


def _inside(reader: _Reader, at: int, size: int, data_at: int, data_bytes: int, what: str) -> bytes:
    if at + size > data_bytes:
        raise InputError(f"the plan is damaged: its {what} lie outside the data; compress the model again")
    return reader.bytes(data_at + at, size, what)


def _read_tensor(reader: _Reader, at: int, data_at: int, data_bytes: int) -> tuple[PlanTensor, int]:
    fields = reader.unpack("<BBBBIq5iI5q4iQQ", at, "tensors")
    dtype, space, rank, _, index, offset = fields[:6]
    if dtype > 2 or space > 3 or not 1 <= rank <= MAX_RANK:
        raise InputError(
            f"the plan is damaged: a tensor has dtype {dtype}, space {space}, rank {rank}; compress the model again"
        )
    dims, strides, border = fields[6 : 6 + rank], fields[12 : 12 + rank], fields[17:21]
    fill_at, fill_bytes = fields[21:23]
    fill = _inside(reader, fill_at, fill_bytes, data_at, data_bytes, "fills")
    made = PlanTensor(dtype, space, offset, dims, strides, index, (border[0], border[1], border[2], border[3]), fill)
    return made, fill_at if fill_bytes else data_bytes


def _read_op(reader: _Reader, at: int, data_at: int, data_bytes: int) -> tuple[PlanOp, int, int]:
    code, tensors, attributes, blobs, name_bytes, _ = reader.unpack("<6H", at, "operations")
    if code not in Op._value2member_map_:
        raise InputError(f"the plan has the unknown operation {code}; it needs a newer version of this program")
    at += 12
    ids = reader.unpack(f"<{tensors}i", at, "operations")
    at += 4 * tensors
    settings = reader.unpack(f"<{attributes}i", at, "operations")
    at += 4 * attributes
    found, first = [], data_bytes
    for _ in range(blobs):
        blob_at, size = reader.unpack("<QQ", at, "operations")
        found.append(_inside(reader, blob_at, size, data_at, data_bytes, "blobs"))
        first = min(first, blob_at if size else data_bytes)
        at += 16
    name = reader.bytes(at, name_bytes, "names").decode(errors="replace")
    return PlanOp(Op(code), ids, settings, tuple(found), name), at + name_bytes + -name_bytes % 4, first


def _read_port(reader: _Reader, at: int, tensor_count: int) -> tuple[Port, int]:
    tensor, rank, *rest = reader.unpack("<iI6qI", at, "ports")
    if rank > 6 or not 0 <= tensor < tensor_count:
        raise InputError("the plan is damaged: a port names no tensor; compress the model again")
    size = rest[6]
    name = reader.bytes(at + 60, size, "names").decode(errors="replace")
    return Port(tensor, tuple(rest[:rank]), name), at + 60 + size + -size % 4


_SPACES = ("arena", "input", "output", "constant")
_DTYPES = ("u8", "f32", "i32")


def describe_tensor(tensor: PlanTensor) -> str:
    """As `u8[52,52,64] @arena+4096 row 3456 pixel 64 border 1,1,1,1`."""
    dims = ",".join(str(d) for d in tensor.dims)
    steps = ",".join(str(s) for s in tensor.strides)
    border = f" border {','.join(map(str, tensor.border))}" if any(tensor.border) else ""
    return f"{_DTYPES[tensor.dtype]}[{dims}]/({steps}) @{_SPACES[tensor.space]}+{tensor.offset}{border}"


def macs(op: PlanOp, tensors: Sequence[PlanTensor]) -> int:
    """Multiply-accumulates of a CONV or DEPTHWISE; 0 for anything else."""
    if op.code not in (Op.CONV, Op.DEPTHWISE):
        return 0
    height, width, channels = tensors[op.tensors[1]].dims
    taps = op.attributes[0] * op.attributes[1]
    return height * width * channels * taps * (op.attributes[8] if op.code == Op.CONV else 1)


def describe(plan: Plan) -> str:
    """The plan as text, one line per operation, then its notes."""
    kib = f"{plan.arena_bytes / 1024:.0f} KiB arena"
    if plan.arena_unshared_bytes:
        kib += f" ({plan.arena_unshared_bytes / 1024:.0f} KiB without reuse)"
    lines = [f"{len(plan.ops)} operations, {len(plan.tensors)} tensors, {kib}"]
    for k, op in enumerate(plan.ops):
        shown = "  ".join(describe_tensor(plan.tensors[t]) if t >= 0 else "-" for t in op.tensors)
        work = macs(op, plan.tensors)
        size = f" {work / 1e6:.2f} MMAC" if work else ""
        lines.append(f"{k:4d} {op.code.name:14s} {op.name}{size}: {shown}")
    return "\n".join([*lines, *(f"note: {n}" for n in plan.notes)])
