"""Random int8 networks: the reference against ONNX Runtime on the same model as a Q/DQ file.

ONNX Runtime, unoptimized, computes every layer in float32 between DequantizeLinear and QuantizeLinear. Where all inputs
of an operation are the same codes on both sides, its result may differ by one code only, and only for values that lie
within the float error of a tie between two codes, or within the error of an activation's polynomial.
"""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from random_int8 import feeds, random_int8_model
from roadworthy.model import graph as g
from roadworthy.model.model import load
from roadworthy.model.qdq import from_qdq, to_qdq
from roadworthy.run import arithmetic as ar
from roadworthy.run.ort import OrtRunner
from roadworthy.run.reference import ReferenceRunner

SEEDS = range(60)
POLYNOMIAL_ERROR = 6e-4
"""Largest error of an activation's pieces, see test_polynomial."""
FORMS: Counter[str] = Counter()


def compare(seed: int) -> None:
    model = random_int8_model(seed)
    runner = ReferenceRunner(model)
    x = feeds(model, seed)
    names = [n for n, v in g.values(model.ir).items() if n in runner.encodings and g.constant(v) is None]
    held = {str(v.name) for o in runner.operations for v in (o.output, *o.inputs)}
    names = [n for n in names if n in held]
    ours = runner.codes(x, names)
    outside = OrtRunner(to_qdq(model), 1, optimize=False).run(x, names)
    theirs = {n: runner.encodings[n].quantize(outside[n]) for n in names}
    for operation in runner.operations:
        name = str(operation.output.name)
        same = all(np.array_equal(ours[i], theirs[i]) for v in operation.inputs if (i := str(v.name)) in theirs)
        if operation.form == "float" or name not in theirs or not same:
            continue
        apart = np.abs(ours[name].astype(int) - theirs[name].astype(int))
        slack, share = 1, 0.02
        form: str = operation.form
        if operation.unit is not None:
            epilogue = ar.unit_epilogue(operation.unit, runner.encodings)
            form = epilogue.kind
            before = str(ar.pre_activation(operation.unit).name)
            if form != "table" and before in runner.encodings and before != name:
                continue  # the file rounds in front of the activation, too
            if form == "poly":
                step = float(runner.encodings[name].scale.min())
                slack, share = 1 + int(POLYNOMIAL_ERROR / step), 0.02 + POLYNOMIAL_ERROR / step
        if form == "fine":  # rounding in front of the activation moves a result by up to this, in codes
            share = ar.FINE**0.5 / 2
        if form == "linear":
            share = 0.25  # blends of codes in halves and quarters are often ties, which float32 decides at random
        FORMS[form] += 1
        unequal = float((apart > 0).mean())
        what = (
            f"seed {seed}: {form} {operation.nodes[0].op_type} {name}: {apart.max()} codes apart, {unequal:.3f} unequal"
        )
        assert apart.max() <= slack and unequal <= max(share, 2 / apart.size), what


@pytest.mark.parametrize("seed", SEEDS)
def test_random_network(seed: int):
    compare(seed)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_exact_models_take_no_sums_in_float(data: st.DataObject):
    model = random_int8_model(lambda n: data.draw(st.integers(0, n - 1)))
    for operation in ar.operations(model):
        sums = {"Conv", "Gemm", "MatMul", "AveragePool", "GlobalAveragePool"} & {n.op_type for n in operation.nodes}
        assert operation.form != "float" or not sums, operation.refusal
    assert all(np.isfinite(v).all() for v in ReferenceRunner(model).run(feeds(model)).values())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_model_that_comes_back_from_its_file_is_the_same(seed: int):
    """Biases are stored as int32 there, weights as codes. What no integer layer reads or makes is not stored."""
    model = random_int8_model(seed)
    back = from_qdq(load(to_qdq(model)))
    if dict(back.encodings) == dict(model.encodings):
        x = feeds(model, seed)
        again = ReferenceRunner(back).run(x)
        for name, wanted in ReferenceRunner(model).run(x).items():
            assert np.array_equal(again[name], wanted)
        FORMS["back"] += 1


def test_every_form_was_met():
    if sum(FORMS.values()) > 100:  # not where one seed was picked by hand
        assert {"linear", "table", "fine", "poly", "add", "mul", "concat", "average", "move"} <= set(FORMS)
        assert FORMS["back"] > len(SEEDS) // 4
