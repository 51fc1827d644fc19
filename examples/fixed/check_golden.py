"""Recompute golden vectors with integers alone: what every operation of a fixed-point network means, in NumPy.

    python check_golden.py golden.npz golden.json

Needs NumPy and nothing else. Exit code 0: all equal; 1: something differs; 2: the files cannot be used.

Every operation takes the codes of its inputs out of the file, computes as a device would (u8 codes, s8 weights, sums
in 32 bits, one 32 x 32 bit product and a shift behind them), and compares accumulators and codes with ==. Copy from
here into the test of a kernel. docs/golden.md says what the fields are.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

Array = Any
Row = dict[str, Any]


def scale32(v: Array, m: Array, s: Array) -> Array:
    """v * M / 2^S, halves rounded up; the product needs 63 bits."""
    s = np.asarray(s, np.int64)
    return (v * np.asarray(m, np.int64) + (np.int64(1) << (s - 1))) >> s


def per_channel(values: Array, ndim: int) -> Array:
    """(C,) or one number, to go with (images, 1, C, H, W)."""
    values = np.asarray(values, np.int64)
    return values if values.size == 1 or ndim < 5 else values.reshape(-1, 1, 1)


class Checker:
    def __init__(self, arrays: Any, description: Row) -> None:
        self.arrays, self.values = arrays, description["values"]

    def array(self, row: Row, key: str) -> Array:
        return self.arrays[row[key]].astype(np.int64)

    def codes(self, name: str) -> Array:
        return self.arrays[self.values[name]["codes"]].astype(np.int64)

    def zero(self, name: str) -> Array:
        return np.asarray(self.values[name]["zero"], np.int64)

    # Layers: (images, 1, C, H, W) codes, or (images, .., K) rows for a matrix.

    def accumulators(self, row: Row) -> Array:
        """(images, places, channels): sums of codes times weights, and the bias, which has the zero point in it."""
        x, w, bias = self.codes(row["inputs"][0]), self.array(row, "weights"), self.array(row, "bias")
        if row["kind"] == "matrix":
            return (x @ w.T + bias).reshape(len(x), -1, len(bias))
        x = padded(x, row["pads"], self.zero(row["inputs"][0]))  # padding is the code of zero
        groups, (out, each, kh, kw) = row["groups"], w.shape
        (sh, sw), (dh, dw) = row["strides"], row["dilations"]
        h = (x.shape[3] - dh * (kh - 1) - 1) // sh + 1
        wide = (x.shape[4] - dw * (kw - 1) - 1) // sw + 1
        total = np.zeros((len(x), h * wide, groups, out // groups), np.int64)
        for i in range(kh):
            for j in range(kw):
                tap = x[:, 0, :, i * dh : i * dh + (h - 1) * sh + 1 : sh, j * dw : j * dw + (wide - 1) * sw + 1 : sw]
                tap = tap.reshape(len(x), groups, each, h * wide)
                kernel = w[:, :, i, j].reshape(groups, out // groups, each)
                # float64 is exact here: every sum is an integer below 2^53
                total += (kernel.astype(float) @ tap.astype(float)).transpose(0, 3, 1, 2).astype(np.int64)
        return total.reshape(len(x), h * wide, out) + bias

    def epilogue(self, row: Row, acc: Array) -> Array:
        q = scale32(acc, self.array(row, "M"), self.array(row, "S")) + self.array(row, "zero")
        if row["epilogue"] == "fixed_table":
            return self.array(row, "table")[np.clip(q, 0, 255)]
        if row["epilogue"] == "fixed_curve":
            p, table = np.clip(q, -32768, 32767), self.array(row, "table")
            i, f = (p >> 7) + 256, p & 127
            v = table[i] * 128 + (table[i + 1] - table[i]) * f
            q = scale32(v, self.array(row, "M2"), self.array(row, "S2")) + self.array(row, "zero2")
        return np.clip(q, row["lo"], row["hi"])

    def layer(self, row: Row) -> str:
        acc = self.accumulators(row)
        if np.abs(acc).max() >= 2**31:
            return "an accumulator leaves 32 bits"
        if not np.array_equal(acc[:, self.array(row, "places")], self.array(row, "accumulators")):
            return "accumulators differ"
        if row["epilogue"] == "real":  # they leave the device: the host multiplies by row["host"]["scale"]
            return ""
        made, wanted = self.epilogue(row, acc), self.codes(row["output"])
        if row["kind"] == "conv":
            wanted = wanted.reshape(*wanted.shape[:3], -1)[:, 0].transpose(0, 2, 1)
        return differ(made, wanted.reshape(made.shape))

    # The others.

    def add(self, row: Row) -> Array:
        a, b = (self.codes(n) - z for n, z in zip(row["inputs"], row["z"]))
        m_a, m_b, s, zero = (per_channel(self.array(row, k), a.ndim) for k in ("A", "B", "S", "zero"))
        return np.clip(((a * m_a + b * m_b + (np.int64(1) << (s - 1))) >> s) + zero, row["lo"], row["hi"])

    def mul(self, row: Row) -> Array:
        names = row["inputs"] * (2 if len(row["inputs"]) == 1 else 1)
        a, b = (self.codes(n) - z for n, z in zip(names, row["z"]))
        return np.clip(scale32(a * b, row["M"], row["S"]) + row["z"][2], row["lo"], row["hi"])

    def average(self, row: Row) -> Array:
        x = self.codes(row["inputs"][0]) - row["z"][0]
        total = np.sum(list(taps(padded(x, row["pads"], 0), row)), 0)
        count = self.array(row, "count")
        q = scale32(total, self.array(row, "M")[count], self.array(row, "S")[count])
        return np.clip(q + row["z"][1], 0, 255)

    def max(self, row: Row) -> Array:
        return np.max(list(taps(padded(self.codes(row["inputs"][0]), row["pads"], 0), row)), 0)

    def linear(self, row: Row) -> Array:
        x, wy, wx = self.codes(row["inputs"][0]), self.array(row, "row_share")[:, None], self.array(row, "column_share")
        upper, lower = x[..., self.array(row, "row0"), :], x[..., self.array(row, "row1"), :]
        left, right = self.array(row, "column0"), self.array(row, "column1")
        top = upper[..., left] * (2048 - wx) + upper[..., right] * wx
        bottom = lower[..., left] * (2048 - wx) + lower[..., right] * wx
        return (top * (2048 - wy) + bottom * wy + (1 << 21)) >> 22

    def concat(self, row: Row) -> Array:
        parts = [self.codes(n) for n in row["inputs"]]
        parts = [p if t is None else self.arrays[t][p] for p, t in zip(parts, row["tables"])]
        return np.concatenate(parts, row["axis"] if row["axis"] < 0 else row["axis"] + 1)

    def table(self, row: Row) -> Array:
        return self.array(row, "table")[self.codes(row["inputs"][0])]

    def move(self, row: Row) -> Array:
        """Code k - 1 of the input goes where k stands; 0 is a new code, `fill`. The file holds differences."""
        x = self.codes(row["inputs"][0])
        x = np.concatenate([np.full((len(x), 1), row["fill"]), x.reshape(len(x), -1)], 1)
        return x[:, np.cumsum(self.array(row, "steps"))]

    def check(self, row: Row) -> str:
        """What is wrong about an operation; empty where nothing is."""
        if row["kind"] in ("conv", "matrix"):
            return self.layer(row)
        wanted = self.codes(row["output"])
        return differ(getattr(self, row["kind"])(row).reshape(wanted.shape), wanted)


def padded(x: Array, pads: list[int], fill: Array) -> Array:
    """x with rows and columns of `fill` (one number, or one per channel): top, left, bottom, right."""
    top, left, bottom, right = pads
    h, w = x.shape[3:]
    made = np.empty((*x.shape[:3], top + h + bottom, left + w + right), x.dtype)
    made[:] = np.reshape(fill, (-1, 1, 1))
    made[:, :, :, top : top + h, left : left + w] = x
    return made


def taps(x: Array, row: Row) -> Any:
    (kh, kw), (sh, sw) = row["kernel"], row["strides"]
    h, w = (x.shape[3] - kh) // sh + 1, (x.shape[4] - kw) // sw + 1
    for i in range(kh):
        for j in range(kw):
            yield x[:, :, :, i : i + (h - 1) * sh + 1 : sh, j : j + (w - 1) * sw + 1 : sw]


def differ(made: Array, wanted: Array) -> str:
    wrong = np.flatnonzero(made.reshape(-1) != wanted.reshape(-1))
    if not wrong.size:
        return ""
    a, b = made.reshape(-1)[wrong[0]], wanted.reshape(-1)[wrong[0]]
    return f"{wrong.size} of {made.size} codes differ, the first {a} instead of {b}"


def opened(npz: str, text: str) -> tuple[Any, Row]:
    """The arrays and their description; ValueError, in one sentence, for files that are not golden vectors."""
    try:
        description = json.loads(Path(text).read_text())
    except OSError as error:
        raise ValueError(f"{text} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{text} is not JSON: {error}") from error
    if not isinstance(description, dict) or not {"operations", "values"} <= set(description):
        raise ValueError(f"{text} does not describe golden vectors; it has no `operations` and `values`")
    try:
        arrays = np.load(npz)
    except OSError as error:
        raise ValueError(f"{npz} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{npz} is not a file of NumPy arrays") from error
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise ValueError(f"{npz} is not a file of several NumPy arrays (.npz)")
    return arrays, description


def main(args: list[str]) -> int:
    if {"-h", "--help"} & set(args):
        print((__doc__ or "").strip())
        return 0
    if len(args) != 2:
        print("usage: python check_golden.py golden.npz golden.json", file=sys.stderr)
        return 2
    try:
        return check(*opened(*args))
    except ValueError as error:
        print(error, file=sys.stderr)
    except KeyError as error:
        print(f"{args[0]} and {args[1]} do not belong together: {error} is missing", file=sys.stderr)
    return 2


def check(arrays: Any, description: Row) -> int:
    checker, failed = Checker(arrays, description), 0
    for row in description["operations"]:
        fault = checker.check(row)
        failed += bool(fault)
        if fault:
            print(f"{row['kind']} {row['name']}: {fault}")
    print(f"{len(description['operations'])} operations, {failed} of them wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
