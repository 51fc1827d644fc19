"""native/kernels/float_math.h gives the bits of run/arithmetic (NumPy), on every path this CPU has."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from roadworthy.run import arithmetic

ROOT = Path(__file__).parents[2] / "native"
X86 = platform.machine() in ("x86_64", "AMD64")
FLAGS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512vnni": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"],
}
CPU_FLAGS = {"portable": [], "avx2": ["avx2", "fma"], "avx512vnni": ["avx512f", "avx512bw", "avx512vl", "avx512dq"]}
WRAPPER = """
#include "kernels/elementwise_f32_PATH.cc"
extern "C" {
__attribute__((visibility("default"))) void unary(const float* x, float* y, int64_t n, int f, float a, float b) {
  rw::unary_f32_PATH(x, y, n, f, a, b);
}
__attribute__((visibility("default"))) void binary(const float* a, const float* b, float* y, int64_t n, int f) {
  rw::binary_f32_PATH(a, 1, b, 1, y, n, f, 0, 0, 0);
}
__attribute__((visibility("default"))) void softmax(const float* x, float* y, int64_t n) {
  rw::softmax_f32_PATH(x, y, n);
}
}
"""
F32 = NDArray[np.float32]


def _cpu_has(path: str) -> bool:
    if path == "portable":
        return True
    info = Path("/proc/cpuinfo")
    if not X86 or not info.exists():
        return False
    found = set(info.read_text().split())
    return all(flag in found for flag in CPU_FLAGS[path])


@pytest.fixture(scope="module", params=list(FLAGS))
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = request.param
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    if not _cpu_has(path):
        pytest.skip(f"this CPU has no {path}")
    folder = tmp_path_factory.mktemp(path)
    (folder / "wrapper.cc").write_text(WRAPPER.replace("PATH", path))
    command = [compiler, "-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", *FLAGS[path]]
    subprocess.run([*command, f"-I{ROOT}", str(folder / "wrapper.cc"), "-o", str(folder / "wrapper.so")], check=True)
    return ctypes.CDLL(str(folder / "wrapper.so"))


def _pointer(x: F32) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.ctypes.data)


def _same(got: F32, expected: F32, inputs: Callable[[int], str]) -> None:
    """Equal as numbers (+0 and -0 are), NaN where NaN."""
    wrong = np.flatnonzero(~((got == expected) | (np.isnan(got) & np.isnan(expected))))
    first = int(wrong[0]) if wrong.size else 0
    assert not wrong.size, f"{wrong.size} differ; of {inputs(first)}: {got[first]!r}, NumPy {expected[first]!r}"


def _values(count: int, seed: int) -> F32:
    """Every bit pattern that is a number is as likely as any other; and a dense set around 0; and the special ones."""
    random = np.random.default_rng(seed)
    patterns = random.integers(0, 2**32, count, dtype=np.uint32).view(np.float32)
    x = np.concatenate([patterns, np.float32(random.uniform(-100, 100, count)), np.float32(random.normal(0, 3, count))])
    special = [
        0.0,
        -0.0,
        1,
        -1,
        87,
        -87,
        88,
        -88,
        20,
        6,
        -6,
        1e-45,
        -1e-45,
        1.17549435e-38,
        3.4e38,
        -3.4e38,
        np.inf,
        -np.inf,
    ]
    x = np.concatenate([np.array(special, np.float32), x])
    return np.ascontiguousarray(x[~np.isnan(x)])


@pytest.mark.parametrize("name", sorted(arithmetic.UNARY))
def test_unary(library: ctypes.CDLL, name: str) -> None:
    a, b = (-0.75, 1.5) if name == "clip" else (0.2, 0.5)
    x = _values(60_000, 1)
    y = np.empty_like(x)
    code = arithmetic.UNARY[name]
    library.unary(_pointer(x), _pointer(y), ctypes.c_int64(x.size), code, ctypes.c_float(a), ctypes.c_float(b))
    _same(y, arithmetic.evaluate(arithmetic.Function(name, a, b), x), lambda i: f"{name}({x[i]!r})")


@pytest.mark.parametrize("name", sorted(arithmetic.BINARY))
def test_binary(library: ctypes.CDLL, name: str) -> None:
    a, b = _values(30_000, 2), _values(30_000, 3)
    n = min(a.size, b.size)
    a, b = a[:n], np.ascontiguousarray(b[:n][::-1])
    b[::3] = np.round(b[::3])  # powers of negative numbers
    y = np.empty_like(a)
    library.binary(_pointer(a), _pointer(b), _pointer(y), ctypes.c_int64(n), arithmetic.BINARY[name])
    _same(y, arithmetic.evaluate_pair(name, a, b), lambda i: f"{name}({a[i]!r}, {b[i]!r})")


def test_softmax(library: ctypes.CDLL) -> None:
    random = np.random.default_rng(4)
    for n in [*range(1, 50), 80, 1000, 8400]:
        x = random.normal(0, 6, n).astype(np.float32)
        y = np.empty_like(x)
        library.softmax(_pointer(x), _pointer(y), ctypes.c_int64(n))
        _same(y, arithmetic.softmax(x), f"element {{}} of {n}".format)
