"""Two runners of one network compared value by value."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_graphs import N, build, rand
from roadworthy.check.agreement import compare_runners
from roadworthy.errors import InputError
from roadworthy.model.model import load
from roadworthy.run.ort import OrtRunner
from roadworthy.run.targets import TARGETS, WITNESSES

NODES = [N("Conv", ["x", "w"], ["c"]), N("Relu", ["c"], ["r"]), N("Add", ["r", "k"], ["y"])]
WEIGHTS = {"w": np.float32([[[[1]]]]), "k": np.float32(0)}


class Fake:
    input_names, output_names = ("x",), ("y",)

    def __init__(self, *results: np.ndarray) -> None:
        self.results = list(results)

    def run(self, feeds, taps=()):  # type: ignore[no-untyped-def]
        return {"y": self.results.pop(0)}


def runner(change: float = 0.0) -> OrtRunner:
    weights = {**WEIGHTS, "k": np.float32(change)}
    return OrtRunner(build(NODES, weights, (1, 1, 2, 2)).SerializeToString(), 1)


def test_figures():
    a = Fake(np.float32([3, -4]), np.float32([1, 0]))
    b = Fake(np.float32([3, -4]), np.float32([1, 0.5]))
    (found,) = compare_runners(a, b, [rand(1)] * 2)
    assert (found.off, found.largest, found.equal, found.images) == (0.5, 4.0, False, 2)
    assert found.relative == 0.125 and found.rms == pytest.approx(np.sqrt(0.25 / 26))


def test_values_inside():
    xs = [rand(1, 1, 2, 2, seed=k) for k in range(3)]
    output, inner = compare_runners(runner(), runner(0.25), xs, ("r",))
    assert output.name == "y" and not output.equal and output.off == pytest.approx(0.25)
    assert inner.name == "r" and inner.equal and inner.off == inner.relative == inner.rms == 0


def test_not_a_number_is_a_difference():
    (found,) = compare_runners(Fake(np.float32([1, 2])), Fake(np.float32([1, np.nan])), [rand(1)])
    assert not found.equal and found.off == found.relative == np.inf


def test_refusals():
    with pytest.raises(InputError, match="nothing to compare on"):
        compare_runners(runner(), runner(), [])
    with pytest.raises(InputError, match="shape"):
        compare_runners(Fake(rand(2)), Fake(rand(3)), [rand(1)])
    other = Fake()
    other.output_names = ("z",)
    with pytest.raises(InputError, match="one runner gives y, the other z"):
        compare_runners(runner(), other, [rand(1)])
    with pytest.raises(KeyError):
        compare_runners(runner(), runner(), [rand(1, 1, 2, 2)], ("nowhere",))


@pytest.mark.parametrize("name", WITNESSES)
def test_witnesses_are_no_targets(name: str):
    if name != "reference":
        pytest.importorskip("torch")
    assert name not in TARGETS
    made = WITNESSES[name](load(build(NODES, WEIGHTS, (1, 1, 2, 2))))
    for found in compare_runners(runner(), made, [rand(1, 1, 2, 2)], ("c", "r")):
        assert found.relative <= 2**-22
