"""The plan file: what is written is read, at the places docs/engine.md names; damage is named."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from roadworthy.data.preprocess import Preprocess
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError
from roadworthy.model.task import Task
from roadworthy.run.native.plan import (
    ARENA,
    CONSTANT,
    F32,
    OUTPUT,
    U8,
    Op,
    Plan,
    PlanOp,
    PlanTensor,
    Port,
    bits_float,
    float_bits,
)
from roadworthy.run.native.task_text import task_text


def small() -> Plan:
    image = PlanTensor(U8, ARENA, 64, (4, 5, 3), (21, 3, 1), 0, (1, 1, 0, 0), b"\x07")
    numbers = PlanTensor(F32, CONSTANT, 0, (3,), (1,))
    result = PlanTensor(F32, OUTPUT, 0, (1, 3), (3, 1), 1)
    ops = (
        PlanOp(Op.TABLE, (0, 0), (), (bytes(range(256)),), "a name"),
        PlanOp(Op.UNARY, (1, -1), (1, float_bits(0.5), -3), (), "ü"),
        PlanOp(Op.GATHER, (0, 0), (), (np.arange(3, dtype=np.int32).tobytes(),)),
    )
    ports = (Port(0, (1, 3, 4, 5), "x"),), (Port(2, (1, 3), "yy"), Port(2, (1, 3), "zzz"))
    return Plan((image, numbers, result), ops, *ports, 4096, b"\1" * 64, "a\tb\n")


def test_what_is_written_is_read():
    plan = small()
    data = plan.to_bytes()
    back = Plan.from_bytes(data)
    assert back == plan and back.to_bytes() == data
    assert "TABLE" in plan.describe() and "border 1,1,0,0" in plan.describe()


def test_numbers_stand_where_the_contract_says():
    data = small().to_bytes()
    assert data[:4] == b"RWPL" and struct.unpack_from("<I", data, 4) == (1,)
    assert struct.unpack_from("<Q", data, 8) == (len(data),)
    assert struct.unpack_from("<I", data, 16) == (zlib.crc32(data[20:]),)
    assert struct.unpack_from("<Q", data, 24) == (4096,)
    tensors_at, tensors, ops, ops_at, ports_at, inputs, outputs = struct.unpack_from("<QIIQQII", data, 32)
    assert (tensors, ops, inputs, outputs) == (3, 3, 1, 2)
    data_at, data_bytes, text_at, text_bytes = struct.unpack_from("<QQQI", data, 72)
    assert data_at % 64 == 0 and data[text_at : text_at + text_bytes] == b"a\tb\n"
    assert data[data_at : data_at + 64] == b"\1" * 64
    # The first tensor: dims at 16, strides at 40, border at 80, fill at 96.
    assert struct.unpack_from("<3i", data, tensors_at + 16) == (4, 5, 3)
    assert struct.unpack_from("<3q", data, tensors_at + 40) == (21, 3, 1)
    assert struct.unpack_from("<4i", data, tensors_at + 80) == (1, 1, 0, 0)
    fill_at, fill_bytes = struct.unpack_from("<QQ", data, tensors_at + 96)
    assert fill_at % 64 == 0 and data[data_at + fill_at : data_at + fill_at + fill_bytes] == b"\x07"
    assert struct.unpack_from("<6H", data, ops_at) == (9, 2, 0, 1, 6, 0)
    blob_at, blob_bytes = struct.unpack_from("<QQ", data, ops_at + 20)
    assert data[data_at + blob_at : data_at + blob_at + blob_bytes] == bytes(range(256))
    assert data[ops_at + 36 : ops_at + 44] == b"a name\0\0"
    assert struct.unpack_from("<iI4q", data, ports_at) == (0, 4, 1, 3, 4, 5)
    assert ports_at + 64 <= data_at < text_at <= len(data) and data_bytes % 64 == 0


def test_floats_as_bits():
    assert bits_float(float_bits(-0.1)) == np.float32(-0.1)
    assert float_bits(1.0) == 0x3F800000


@pytest.mark.parametrize("at", [0, 4, 9, 17, 40, 80, 200, 700, -1])
def test_a_changed_byte_is_noticed(at: int):
    data = bytearray(small().to_bytes())
    data[at] ^= 0x41
    with pytest.raises(InputError, match="plan"):
        Plan.from_bytes(bytes(data))


@pytest.mark.parametrize("size", [0, 3, 60, 127, 128, 500, -1])
def test_a_cut_file_is_noticed(size: int):
    with pytest.raises(InputError, match="plan"):
        Plan.from_bytes(small().to_bytes()[:size])


@pytest.mark.parametrize("at", [40, 44, 48, 56, 72, 80, 88, 96])
def test_a_count_or_offset_outside_the_file_is_noticed_with_a_right_checksum(at: int):
    data = bytearray(small().to_bytes())
    struct.pack_into("<I", data, at, 0x7FFFFFF0)
    struct.pack_into("<I", data, 16, zlib.crc32(bytes(data[20:])))
    with pytest.raises(InputError, match=r"the plan (is damaged|has the unknown operation)"):
        Plan.from_bytes(bytes(data))


def test_the_task_as_lines():
    spec = DecodeSpec("yolov5", 2, (64, 96), (8, 16), (((10.0, 13.0), (16.5, 30.0)), ((30.0, 61.0), (62.0, 45.0))),
                      class_names=("a;b", "c\\d"))  # fmt: skip
    task = Task(Preprocess((64, 96), mean=(0.5, 0.25, 1e-5)), spec)
    lines = dict(line.split("\t", 1) for line in task_text(task).splitlines())
    assert lines["size_hw"] == "64 96" and lines["mean"] == "0.5 0.25 1e-05" and lines["kind"] == "yolov5"
    assert lines["anchors"] == "10.0 13.0 16.5 30.0;30.0 61.0 62.0 45.0"
    assert lines["class_names"] == "a\\;b;c\\\\d"
    assert lines["background"] == "" and lines["decoded"] == "0" and lines["task_json"] == task.to_json()
    assert task_text(None) == ""
