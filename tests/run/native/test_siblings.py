"""Convolutions of one input computed as one: the same numbers, fewer operations, and no copy."""

from __future__ import annotations

import numpy as np
import pytest
from interpreter import Interpreter

from onnx_graphs import N, build, rand
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding, QuantSpec, encoding_of_range
from roadworthy.model.model import Model, load
from roadworthy.run.native.lower import lower
from roadworthy.run.native.plan import Op, Plan
from roadworthy.run.reference import ReferenceRunner


def block(order: tuple[str, str], activation: str = "Relu") -> Model:
    """A cross-stage block: a and b are siblings, b goes into a Concat, a through a layer with a border."""
    nodes = [N("Conv", ["x", "w", "bias"], ["ca"]), N(activation, ["ca"], ["a"]), N("Conv", ["x", "v"], ["cb"]),
             N(activation, ["cb"], ["b"]), N("Conv", ["a", "u"], ["cm"], pads=[1, 1, 1, 1]), N("Relu", ["cm"], ["m"]),
             N("Concat", list(order), ["z"], axis=1), N("Conv", ["z", "t"], ["y"], pads=[1, 1, 0, 0])]  # fmt: skip
    weights = {"w": rand(5, 4, 1, 1), "bias": rand(5), "v": rand(3, 4, 1, 1, seed=1), "u": rand(2, 5, 3, 3) / 4,
               "t": rand(3, 5, 2, 2) / 4}  # fmt: skip
    return load(build(nodes, weights, (1, 4, 6, 7)))


def encoded(model: Model) -> Model:
    names = ["x", "a", "b", "m", "z"]
    seen = ReferenceRunner(model).run({"x": rand(1, 4, 6, 7)}, [n for n in names if n != "x"])
    seen["x"] = rand(1, 4, 6, 7)
    found: dict[str, Encoding] = {
        n: encoding_of_range(float(seen[n].min()), float(seen[n].max()), QuantSpec()) for n in names
    }
    for name in ("m", "b"):
        found[name] = found["z"]
    values = g.values(model.ir)
    for name in ("w", "v", "u", "t"):
        weight = g.constant(values[name])
        assert weight is not None
        scale = (np.abs(weight).max((1, 2, 3)) / 127).astype(np.float32)
        found[name] = Encoding(scale, np.zeros(len(scale), np.int64), 8, True, 0)
    return model.with_encodings(found, "encoded")


def count(plan: Plan, op: Op) -> int:
    return sum(o.code == op for o in plan.ops)


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("order", [("m", "b"), ("b", "m")])
def test_a_sibling_that_goes_into_a_concat_is_merged_without_a_copy(order: tuple[str, str], integer: bool):
    model = encoded(block(order)) if integer else block(order)
    plain, merged = lower(model), lower(model, merge_siblings=True)
    assert count(plain, Op.CONV) == 4 and count(merged, Op.CONV) == 3
    assert count(merged, Op.COPY) == count(plain, Op.COPY)
    given = {"x": rand(1, 4, 6, 7, seed=2)}
    a, b = (Interpreter(p, k).run(given)["y"] for k, p in enumerate((plain, merged)))
    assert np.array_equal(a, b)
    if integer:
        assert np.array_equal(b, ReferenceRunner(model).run(given)["y"])


def test_siblings_that_go_nowhere_special_are_merged():
    nodes = [N("Conv", ["x", k], [f"c{k}"], pads=[1, 1, 1, 1]) for k in "uvw"]
    nodes += [N("Conv", [f"c{k}", "t"], [f"d{k}"], pads=[1, 1, 1, 1]) for k in "uvw"]
    nodes += [N("Sum", ["du", "dv", "dw"], ["y"])]
    model = load(build(nodes, {**{k: rand(5, 4, 3, 3, seed=s) / 6 for s, k in enumerate("uvw")},
                               "t": rand(3, 5, 3, 3) / 6}, (1, 4, 6, 7)))  # fmt: skip
    plain, merged = lower(model), lower(model, merge_siblings=True)
    assert count(plain, Op.CONV) == 6 and count(merged, Op.CONV) == 4
    given = {"x": rand(1, 4, 6, 7)}
    assert np.array_equal(Interpreter(plain).run(given)["y"], Interpreter(merged, 1).run(given)["y"])


@pytest.mark.parametrize("activation", ["Sigmoid", "Relu"])
def test_different_epilogues_stay_apart(activation: str):
    nodes = [N("Conv", ["x", "w"], ["a"]), N("Conv", ["x", "v"], ["c"]), N(activation, ["c"], ["b"]),
             N("Concat", ["a", "b"], ["y"], axis=1)]  # fmt: skip
    model = load(build(nodes, {"w": rand(5, 4, 1, 1), "v": rand(3, 4, 1, 1)}, (1, 4, 6, 7)))
    assert count(lower(model, merge_siblings=True), Op.CONV) == 2
