"""Golden vectors: a program that knows nothing of Roadworthy finds them right, and finds what is planted in them."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import random_graphs
from random_encodings import feeds
from roadworthy.errors import InputError
from roadworthy.model.model import Model, load
from roadworthy.run.arithmetic import float_between, operations
from roadworthy.run.golden import Golden, golden_vectors

CHECK = Path(__file__).parents[2] / "examples" / "fixed" / "check_golden.py"


@functools.cache
def random_int8_model(seed: int) -> Model:
    return random_graphs.random_int8_model(seed)


SEEDS = [seed for seed in range(45) if float_between(operations(random_int8_model(seed))) is None]


@pytest.fixture(scope="module")
def checking() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_golden", CHECK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def made(seed: int, images: int = 2) -> Golden:
    model = random_int8_model(seed)
    return golden_vectors(model, [feeds(model, k)[model.input_name] for k in range(images)])


def faults(checking: ModuleType, golden: Golden) -> dict[str, str]:
    """What the program says, by the operation's name."""
    checker = checking.Checker(golden.arrays, json.loads(json.dumps(golden.description)))
    rows = golden.description["operations"]
    return {row["name"]: said for row in rows if (said := checker.check(row))}


def test_the_program_needs_numpy_alone():
    names = {
        (n.module or "") if isinstance(n, ast.ImportFrom) else a.name
        for n in ast.walk(ast.parse(CHECK.read_text()))
        if isinstance(n, ast.Import | ast.ImportFrom)
        for a in n.names
    }
    assert names - set(sys.stdlib_module_names) == {"numpy"}


def test_random_networks_are_found_right(checking: ModuleType):
    kinds = set()
    for seed in SEEDS:
        golden = made(seed)
        assert faults(checking, golden) == {}, f"seed {seed}"
        kinds |= {(r["kind"], r.get("epilogue")) for r in golden.description["operations"]}
    assert {k for k, _ in kinds} == {
        "conv", "matrix", "add", "mul", "average", "max", "linear", "concat", "table", "move",
    }  # fmt: skip
    assert {e for _, e in kinds} == {None, "fixed", "fixed_table", "fixed_curve", "real"}


# What is planted into which array of which kind of operation.
PLANTED: dict[str, Any] = {
    "S": lambda a: a + 1, "M": lambda a: a - a // 64, "bias": lambda a: a + 300, "zero": lambda a: a + 1,
    "weights": lambda a: -a, "table": lambda a: np.roll(a, 3), "M2": lambda a: a - a // 64, "S2": lambda a: a - 1,
    "zero2": lambda a: a + 1, "A": lambda a: a - a // 64, "B": lambda a: a - a // 64, "steps": lambda a: a[::-1],
    "row_share": lambda a: 2048 - a, "column0": lambda a: a[::-1], "accumulators": lambda a: a + 1,
}  # fmt: skip


@pytest.mark.parametrize("key", PLANTED)
def test_a_planted_fault_is_found_in_its_operation_alone(checking: ModuleType, key: str):
    """Some results do not depend on a number (all zero, all saturated, a shuffle that is none), but most do."""
    tried = found = 0
    for seed in SEEDS:
        golden = made(seed, 1)
        for row in golden.description["operations"]:
            if key not in row or tried >= 12 or not isinstance(row[key], str):
                continue
            kept = golden.arrays[row[key]]
            golden.arrays[row[key]] = PLANTED[key](kept)
            said = faults(checking, golden)
            golden.arrays[row[key]] = kept  # the vectors are shared
            assert set(said) <= {row["name"]}
            tried, found = tried + 1, found + bool(said)
    assert tried >= 3 and found >= 0.6 * tried, f"{found} of {tried}"


def test_padding_strides_and_dilations_matter(checking: ModuleType):
    for key, other in (("pads", [0, 0, 2, 2]), ("dilations", [2, 1]), ("strides", [1, 2])):
        found = 0
        for seed in SEEDS[:12]:
            golden = made(seed, 1)
            for row in golden.description["operations"]:
                if row["kind"] != "conv" or list(row[key]) == other or golden.arrays[row["weights"]].shape[2] < 2:
                    continue
                kept, row[key] = row[key], other
                try:
                    found += bool(faults(checking, golden))
                except (ValueError, IndexError):  # the shapes do not fit any more
                    found += 1
                row[key] = kept
        assert found > 3, key


def test_one_image_or_two_some_layers_or_all():
    model = random_int8_model(SEEDS[0])
    given = [feeds(model, k)[model.input_name] for k in range(2)]
    both = golden_vectors(model, given)
    layers = [r["name"] for r in both.description["operations"] if r["kind"] in ("conv", "matrix")]
    few = golden_vectors(model, given[:1], layers[:1])
    assert both.description["images"] == 2 and few.description["images"] == 1
    assert [r["name"] for r in few.description["operations"]] == layers[:1]
    assert len(few.arrays) < len(both.arrays)
    with pytest.raises(InputError, match=r"no integer layer named 'nowhere'; it has "):
        golden_vectors(model, given, ["nowhere"])


def sample() -> Model:
    """The embedded detector in int8, on a few of its scenes."""
    from roadworthy.jobs.sample import detector, scenes
    from roadworthy.recipe import CorrectBias, Fold, Quantize, Recipe

    recipe = Recipe((Fold(), Quantize("fixed", "minmax"), CorrectBias()), 2, 0)
    return recipe.apply(load(detector()), scenes(2, 7, "calibration"))


def test_the_sample_network_and_a_wrong_shift_in_it(tmp_path: Path):
    model = sample()
    golden = golden_vectors(model, [np.random.default_rng(0).random(model.input_shape, np.float32)])
    files = tmp_path / "golden.npz", tmp_path / "golden.json"

    def run() -> subprocess.CompletedProcess[str]:
        golden.write(*files)
        return subprocess.run([sys.executable, CHECK, *files], capture_output=True, text=True, check=False)

    right = run()
    count = len(golden.description["operations"])
    assert (right.returncode, right.stdout) == (0, f"{count} operations, 0 of them wrong\n"), right.stderr
    kept = files[0].read_bytes()
    golden.write(*files)
    assert files[0].read_bytes() == kept  # the same bytes
    row = [r for r in golden.description["operations"] if "S" in r and r["kind"] == "conv"][3]
    shift = golden.arrays[row["S"]] = golden.arrays[row["S"]].copy()
    shift[len(shift) // 2] += 1  # of one channel
    wrong = run()
    assert wrong.returncode == 1 and f"{count} operations, 1 of them wrong" in wrong.stdout
    assert wrong.stdout.startswith(f"conv {row['name']}: ") and "codes differ" in wrong.stdout
