"""Plans in fixed point: the NumPy interpreter and the engine on every path against the reference, with ==."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from interpreter import Interpreter

import random_graphs
from random_encodings import feeds
from roadworthy.errors import InputError, UnsupportedError
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import to_qdq
from roadworthy.optimize import fold
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.place import place
from roadworthy.quantize.quantize import activation_encodings, quantize_units
from roadworthy.run.arithmetic import float_between, operations
from roadworthy.run.native.lower import handler, lower
from roadworthy.run.native.network import Link
from roadworthy.run.native.plan import U8, Op, Plan
from roadworthy.run.native.translate import Translator
from roadworthy.run.reference import ReferenceRunner
from roadworthy.run.targets import TARGETS


@functools.cache
def random_int8_model(seed: int) -> Model:
    return random_graphs.random_int8_model(seed)


def has_form(seed: int) -> bool:
    return float_between(operations(random_int8_model(seed))) is None


SEEDS = [seed for seed in range(50) if has_form(seed)]
FLOAT_FORM = {Op.ADD, Op.MUL, Op.AVGPOOL, Op.RESIZE_LINEAR}


@pytest.mark.parametrize("seed", SEEDS)
def test_plans_equal_the_reference(seed: int):
    model = random_int8_model(seed)
    plan = lower(model, arithmetic="fixed")
    assert Plan.from_bytes(plan.to_bytes()) == plan
    given = feeds(model, seed)
    wanted, got = ReferenceRunner(model, "fixed").run(given), Interpreter(plan, seed).run(given)
    for name in wanted:
        assert np.array_equal(got[name], wanted[name]), f"{name}\n{plan.describe()}"
    for op in plan.ops:  # nothing on codes is computed in the float form
        codes = plan.tensors[op.tensors[-1]].dtype == U8 and plan.tensors[op.tensors[0]].dtype == U8
        assert not (codes and op.code in FLOAT_FORM), op
        assert not (codes and op.code in (Op.CONV, Op.DEPTHWISE) and op.attributes[10] < 5), op


def test_the_networks_have_every_operation():
    ops = [op for seed in SEEDS for op in lower(random_int8_model(seed), arithmetic="fixed").ops]
    layers = (Op.CONV, Op.DEPTHWISE)
    assert {Op.ADD_FIXED, Op.MUL_FIXED, Op.AVGPOOL_FIXED, Op.RESIZE_LINEAR_FIXED, *layers} <= {op.code for op in ops}
    assert {3, 5, 6, 7} <= {op.attributes[10] for op in ops if op.code in layers}


@pytest.mark.parametrize("seed", SEEDS)
def test_no_code_is_made_from_floats_between_integer_operations(seed: int):
    """Whatever the translation puts in between: a QUANTIZE with integers in front and behind would be a float there."""
    network = Translator(random_int8_model(seed), handler, "fixed").run(random_int8_model(seed).output_names, ())
    behind, late = set(), set()
    for item in network.items:
        sources = [item.source] if isinstance(item, Link) else [o.array for o in item.inputs]
        target = item.target if isinstance(item, Link) else item.output.array
        integers = not isinstance(item, Link) and item.op not in (Op.QUANTIZE, Op.DEQUANTIZE, Op.COPY, Op.GATHER,
            Op.RESIZE_NEAREST, Op.MAXPOOL) and sources[0].encoding is not None  # fmt: skip
        assert not (integers and any(s in late for s in sources)), item
        if integers or any(s in behind for s in sources):
            behind.add(target)
        made = not isinstance(item, Link) and item.op == Op.QUANTIZE and any(s in behind for s in sources)
        if made or any(s in late for s in sources):
            late.add(target)


def equal_on_the_engine(model: Model, threads: tuple[int, ...] = (1, 2), scale: float = 1.0) -> None:
    native = pytest.importorskip("roadworthy._native", reason="needs the compiled engine (make native)")
    plan = lower(model, arithmetic="fixed")
    given = {name: scale * array for name, array in feeds(model, 5).items()}
    wanted = ReferenceRunner(model, "fixed").run(given)
    for isa in native.isas():
        for count in threads:
            session = native.Session(plan.to_bytes(), count, isa, poison=True, chunk_ns=1.0)
            for port, array in zip(plan.outputs, session.run(list(given.values()))):
                assert np.array_equal(array, wanted[port.name]), f"{port.name} on {isa} with {count} threads"


@pytest.mark.parametrize("seed", SEEDS)
def test_the_engine_equals_the_reference(seed: int):
    equal_on_the_engine(random_int8_model(seed))


@pytest.mark.parametrize("seed", SEEDS[:12])
def test_the_engine_equals_the_reference_where_sums_saturate(seed: int):
    equal_on_the_engine(random_int8_model(seed), (1,), scale=50.0)


@pytest.mark.assets
@pytest.mark.parametrize("name", ["cifar10_resnet56", "fastestdet", "mobilenet_v1_075", "yolox_nano"])
def test_real_networks(name: str, assets: Path):
    """Every value that is held as codes, on the quickest path; benchmarks/fixed_point.py does it on images."""
    from roadworthy.run.native.runner import NativeRunner

    pytest.importorskip("roadworthy._native", reason="needs the compiled engine (make native)")
    target = TARGETS["fixed"]
    model = fold(load(assets / "models" / f"{name}.onnx"))
    placement = place(model.ir, target)
    noise = np.random.default_rng(0).normal(size=model.input_shape).astype(np.float32)
    statistics = calibrate(model, placement.observed, [noise], 1, per_channel=placement.channels)
    activations = activation_encodings(placement, statistics, target, "minmax")
    small = quantize_units(model, placement, activations, "minmax", {n: 8 for n in placement.why_float})
    reference = ReferenceRunner(small, "fixed")
    codes = reference.all_codes({model.input_name: noise})
    made = {str(v.name) for o in reference.operations for n in o.nodes for v in n.outputs}
    names = [n for n in codes if n in made]
    got = NativeRunner(small, 2, "fixed").run({model.input_name: noise}, names)
    assert len(names) > 20
    for value in names:
        assert np.array_equal(got[value], reference.encodings[value].dequantize(codes[value])), value
    assert {o.unit.name for o in reference.operations if o.unit is not None and o.form != "unit"} == set()


def test_a_shift_that_is_off_by_one_gives_another_result():
    """The comparisons above could be blind."""
    native = pytest.importorskip("roadworthy._native", reason="needs the compiled engine (make native)")
    model = next(
        m for m in map(random_int8_model, SEEDS) if lower(m, arithmetic="fixed").ops[1].code in (Op.CONV, Op.DEPTHWISE)
    )
    plan, given = lower(model, arithmetic="fixed"), feeds(model, 1)
    op = plan.ops[1]
    shifted = (np.frombuffer(op.blobs[5], np.int32) + 1).astype(np.int32).tobytes()
    other = replace(plan, ops=(plan.ops[0], replace(op, blobs=(*op.blobs[:5], shifted, *op.blobs[6:])), *plan.ops[2:]))
    a, b = (native.Session(p.to_bytes(), 1).run(list(given.values())) for p in (plan, other))
    assert any(not np.array_equal(x, y) for x, y in zip(a, b))


# The target


def test_a_plan_says_that_it_is_in_fixed_point():
    from roadworthy.run.native.task_text import is_fixed

    model = random_int8_model(SEEDS[0])
    assert is_fixed(lower(model, arithmetic="fixed").text) and not is_fixed(lower(model).text)


@pytest.mark.skipif(not TARGETS["fixed"].available(), reason="the native engine is not built")
def test_the_target_runs_what_it_ships_and_refuses_the_float_form():
    model = random_int8_model(SEEDS[0])
    target, data, given = TARGETS["fixed"], to_qdq(model), feeds(model, 2)
    shipped = target.deploy(data)
    a, b = (target.runner(d, 1).run(given) for d in (data, shipped))
    assert all(np.array_equal(a[n], b[n]) for n in a)
    assert target.deploy(shipped) == shipped and shipped != TARGETS["native"].deploy(data)
    with pytest.raises(InputError, match=r"computes with float multipliers; give the ONNX file"):
        target.runner(TARGETS["native"].deploy(data))


@pytest.mark.skipif(not TARGETS["fixed"].available(), reason="the native engine is not built")
def test_a_network_that_needs_floats_inside_is_refused_by_the_target():
    model = next(random_int8_model(seed) for seed in range(50) if seed not in SEEDS)
    with pytest.raises(UnsupportedError, match=r"computes in float.*use the target native"):
        TARGETS["fixed"].runner(to_qdq(model))
