"""The C API of `native/include/roadworthy.h` through ctypes: it lies in the module `_native` as well."""

from __future__ import annotations

import ctypes as c
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

OK, ERROR = 0, 1
MOST = 300
Floats = c.POINTER(c.c_float)


class Options(c.Structure):
    _fields_ = (("threads", c.c_int), ("isa", c.c_char_p), ("pin", c.c_int))


class PortStruct(c.Structure):
    _fields_ = (("name", c.c_char_p), ("rank", c.c_int), ("dims", c.c_int64 * 6), ("elements", c.c_int64))


class Found(c.Structure):
    _fields_ = (*((n, c.c_float) for n in ("x1", "y1", "x2", "y2", "score")), ("class_id", c.c_int32))


def library(path: str) -> Any:
    """The functions with their types, as the header has them."""
    api = c.CDLL(path)
    pointer, text, number = c.c_void_p, c.c_char_p, c.c_int
    pixels = c.c_void_p
    for name, result, arguments in (
        ("rw_load", pointer, (text, c.POINTER(Options))),
        ("rw_load_memory", pointer, (text, c.c_size_t, c.POINTER(Options))),
        ("rw_free", None, (pointer,)),
        ("rw_input_count", number, (pointer,)),
        ("rw_output_count", number, (pointer,)),
        ("rw_input", number, (pointer, number, c.POINTER(PortStruct))),
        ("rw_output", number, (pointer, number, c.POINTER(PortStruct))),
        ("rw_task", text, (pointer, text)),
        ("rw_run", number, (pointer, c.POINTER(Floats), number, c.POINTER(Floats), number)),
        ("rw_detect", number,
         (pointer, pixels, number, number, c.c_int64, c.POINTER(Found), number, c.POINTER(number))),
        ("rw_class_name", text, (pointer, number)),
        ("rw_isa", text, (pointer,)),
        ("rw_threads", number, (pointer,)),
        ("rw_arena_bytes", c.c_size_t, (pointer,)),
        ("rw_weight_bytes", c.c_size_t, (pointer,)),
        ("rw_error", text, ()),
        ("rw_version", text, ()),
    ):  # fmt: skip
        function = getattr(api, name)
        function.restype, function.argtypes = result, arguments
    return api


def arrays_of(arrays: list[NDArray[np.float32]]) -> Any:
    return (Floats * len(arrays))(*(a.ctypes.data_as(Floats) for a in arrays))


@dataclass
class Handle:
    """A loaded model; freed at the end of a `with`."""

    api: Any
    model: int

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.api.rw_free(self.model)

    def port(self, output: bool, index: int) -> tuple[str, tuple[int, ...]]:
        port = PortStruct()
        assert (self.api.rw_output if output else self.api.rw_input)(self.model, index, c.byref(port)) == OK
        shape = tuple(port.dims)[: port.rank]
        assert port.elements == np.prod(shape, dtype=np.int64) and set(tuple(port.dims)[port.rank :]) <= {1}
        return port.name.decode(), shape

    def run(self, *inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        count = self.api.rw_output_count(self.model)
        outputs = [np.full(self.port(True, i)[1], np.nan, np.float32) for i in range(count)]
        code = self.api.rw_run(self.model, arrays_of(list(inputs)), len(inputs), arrays_of(outputs), count)
        assert code == OK, self.api.rw_error()
        return outputs

    def detect(self, image: NDArray[np.uint8], capacity: int = MOST) -> NDArray[np.float64]:
        """Rows x1, y1, x2, y2, score, class."""
        found, count = (Found * MOST)(), c.c_int(-1)
        code = self.api.rw_detect(
            self.model, image.ctypes.data, *image.shape[:2], image.strides[0], found, capacity, c.byref(count)
        )
        assert code == OK, self.api.rw_error()
        rows = [[getattr(f, n) for n, _ in Found._fields_] for f in found[: count.value]]
        return np.array(rows, np.float64).reshape(-1, 6)


def load(api: Any, plan: bytes, threads: int = 1, isa: str | None = None) -> Handle:
    options = Options(threads, isa.encode() if isa is not None else None, 0)
    model = api.rw_load_memory(plan, len(plan), c.byref(options))
    assert model, api.rw_error()
    return Handle(api, model)
