"""NativeRunner: what it takes, what taps give, and one sentence for each thing that is wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnx_graphs import N, build, ort, rand
from random_graphs import random_int8_model
from roadworthy.errors import InputError, MissingExtraError, UnsupportedError
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import from_qdq, to_qdq
from roadworthy.optimize import fold
from roadworthy.run.native import runner as native_runner
from roadworthy.run.native.lower import lower
from roadworthy.run.native.runner import NativeRunner
from roadworthy.run.reference import ReferenceRunner
from roadworthy.run.targets import TARGETS

_native = pytest.importorskip("roadworthy._native", reason="needs the compiled engine (make native)")
ISAS = _native.isas()
HALF = 2.0**-24  # the unit roundoff of float32


def feed_of(model: Model, seed: int = 0) -> dict[str, np.ndarray]:
    shape = model.input_shape
    assert shape is not None
    return {model.input_name: np.random.default_rng(seed).normal(size=shape).astype(np.float32)}


def computed(model: Model) -> list[str]:
    """The values with an encoding that a node computes."""
    made = {o.name for node in model.ir.graph for o in node.outputs}
    return [n for n in model.encodings if n in made]


@pytest.mark.parametrize("seed", range(12))
def test_every_tap_equals_the_reference(seed: int):
    """All values with an encoding at once, and outputs that stay what they are without taps."""
    model = random_int8_model(seed)
    feeds, runner = feed_of(model, seed), NativeRunner(model, 1 + seed % 2)
    taps = computed(model)
    assert len(taps) > 2
    wanted = ReferenceRunner(model).run(feeds, taps)
    found = runner.run(feeds, taps)
    assert list(found) == [*runner.output_names, *(t for t in taps if t not in runner.output_names)]
    for name in taps:
        assert np.array_equal(found[name], wanted[name].reshape(found[name].shape)), name
    for name, array in runner.run(feeds).items():
        assert np.array_equal(array, found[name])


def test_an_input_can_be_tapped_and_a_wrong_name_is_a_key_error():
    model = random_int8_model(0)
    feeds, runner = feed_of(model), NativeRunner(model, 1)
    assert np.array_equal(runner.run(feeds, [model.input_name])[model.input_name], feeds[model.input_name])
    with pytest.raises(KeyError, match="nowhere"):
        runner.run(feeds, ["nowhere"])


@pytest.mark.parametrize("seed", [1, 4, 6])
def test_onnx_with_qdq_and_its_plan_are_the_same_network(seed: int):
    model = random_int8_model(seed)
    feeds = feed_of(model, seed)
    exported = to_qdq(model)
    sources = (
        (model, (model, lower(model).to_bytes())),
        (from_qdq(load(exported)), (exported, native_runner.plan_of(exported))),
    )
    for meant, forms in sources:
        wanted = ReferenceRunner(meant).run(feeds)
        for source in forms:
            runner = TARGETS["native"].runner(source, 1) if isinstance(source, bytes) else NativeRunner(source, 1)
            assert set(runner.output_names) == set(wanted)
            for name, array in runner.run(feeds).items():
                assert np.array_equal(array, wanted[name])


def test_a_plan_has_no_taps_and_says_so():
    model = random_int8_model(0)
    runner = NativeRunner(lower(model).to_bytes(), 1)
    with pytest.raises(UnsupportedError, match="a plan file keeps no inner values; load the ONNX file"):
        runner.run(feed_of(model), computed(model)[:1])


@pytest.mark.parametrize("as_plan", [False, True])
def test_wrong_inputs_are_named(as_plan: bool):
    model = random_int8_model(0)
    runner = NativeRunner(lower(model).to_bytes() if as_plan else model, 1)
    name, shape = model.input_name, model.input_shape
    assert shape is not None
    with pytest.raises(InputError, match=f"the input '{name}' is missing; the model needs {name}"):
        runner.run({})
    for wrong in (shape[1:], (*shape[:-1], shape[-1] + 1), (2, *shape[1:]), ()):
        with pytest.raises(InputError, match=f"Input `{name}` has shape") as caught:
            runner.run({name: np.zeros(wrong, np.float32)})
        assert str(list(shape)) in str(caught.value)
    right = {name: np.asfortranarray(feed_of(model)[name].astype(np.float64))}
    plain = runner.run({name: np.ascontiguousarray(right[name], np.float32)})
    for key, array in runner.run(right).items():
        assert np.array_equal(array, plain[key])


@pytest.mark.parametrize("data", [b"RWPL", b"RWPL" + bytes(200), lower(random_int8_model(0)).to_bytes()[:-3]])
def test_damaged_plans_are_input_errors(data: bytes):
    with pytest.raises(InputError, match="plan"):
        NativeRunner(data, 1)


def test_without_the_module_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "roadworthy._native", None)
    monkeypatch.delattr("roadworthy._native", raising=False)
    plan = lower(random_int8_model(0)).to_bytes()
    for call in (native_runner.engine, lambda: NativeRunner(plan), lambda: TARGETS["native"].runner(plan, 1)):
        with pytest.raises(MissingExtraError, match=r"no C\+\+ compiler was found .*apt install g\+\+") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_without_the_module_the_package_and_its_other_targets_work():
    """In a process of its own, in which the module cannot be imported."""
    program = (
        "import sys, importlib.abc\n"
        "class Gone(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'roadworthy._native': raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        "import roadworthy\n"
        "from roadworthy.run.targets import TARGETS\n"
        "from roadworthy.jobs.compress import Settings\n"
        "from roadworthy.jobs.sample import detector\n"
        "assert TARGETS['ort'].available() and not TARGETS['native'].available()\n"
        "assert 'native' not in Settings().targets\n"
        "TARGETS['ort'].runner(detector().read_bytes(), 1)\n"
        "Settings(target='native').check()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "roadworthy.errors.InputError: the native engine is not built; install a C++ compiler (Debian: `apt install"
        " g++`) and then Roadworthy again, or use --target ort"
    )


# Floats


def exact_and_magnitude(x: np.ndarray, weights: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The network of `float_network` in float64, and the same with every term's absolute value."""
    a, m = x[0].astype(np.float64), np.abs(x[0]).astype(np.float64)
    w, v = (array.astype(np.float64) for array in weights)

    def conv(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        k = kernel.shape[2]
        wide = np.pad(image, ((0, 0), (k // 2,) * 2, (k // 2,) * 2))
        h, width = image.shape[1:]
        return sum(
            np.einsum("oc,chw->ohw", kernel[:, :, i, j], wide[:, i : i + h, j : j + width])
            for i in range(k)
            for j in range(k)
        )  # type: ignore[return-value]

    return conv(np.maximum(conv(a, w), 0), v), conv(conv(m, np.abs(w)), np.abs(v))


def float_network() -> tuple[onnx.ModelProto, list[np.ndarray]]:
    weights = [rand(16, 5, 3, 3) * 0.2, rand(7, 16, 1, 1) * 0.3]
    nodes = [
        N("Conv", ["x", "w"], ["p"], pads=[1, 1, 1, 1]),
        N("Relu", ["p"], ["q"]),
        N("Conv", ["q", "v"], ["y"]),
    ]
    return build(nodes, {"w": weights[0], "v": weights[1]}, (1, 5, 11, 13)), weights


@pytest.mark.parametrize("isa", ISAS)
def test_float_agreement_within_the_bound_of_rounding(isa: str):
    """A sum of n products in any order is within n u / (1 - n u) times the sum of their magnitudes of the exact one,
    u = 2^-24 (Higham, Accuracy and Stability, 3.1). Behind two layers of 45 and 16 terms the n add up to 61; one more
    covers the second order. Winograd is another sum and is compared in native/tests."""
    made, weights = float_network()
    x = rand(1, 5, 11, 13, seed=3)
    exact, magnitude = exact_and_magnitude(x, weights)
    bound = (45 + 16 + 1) * HALF * magnitude
    (wanted,) = ort(made, x).values()
    (found,) = NativeRunner(made.SerializeToString(), 2, isa=isa, winograd=0).run({"x": x}).values()
    assert (np.abs(found[0] - exact) <= bound).all()
    assert (np.abs(found[0] - wanted[0]) <= 2 * bound).all()
    # The bound would notice one weight that is a thousandth off.
    off = weights[0].copy()
    off[0, 0, 1, 1] *= 1.001
    assert (np.abs(exact_and_magnitude(x, [off, weights[1]])[0] - exact) > bound).any()


@pytest.mark.parametrize("isa", [*ISAS, "nonsense"])
def test_forced_instruction_sets(isa: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ROADWORTHY_ISA", isa)
    model = random_int8_model(2)
    if isa == "nonsense":
        with pytest.raises(InputError, match=f"`nonsense` is not available here; choose one of {', '.join(ISAS)}"):
            NativeRunner(model, 1)
        return
    feeds = feed_of(model)
    wanted = ReferenceRunner(model).run(feeds)
    for threads in range(1, 5):
        runner = NativeRunner(model, threads)
        assert (runner.session.isa, runner.session.threads) == (isa, threads)
        for name, array in runner.run(feeds).items():
            assert np.array_equal(array, wanted[name])


def test_notes_name_the_layers_in_float():
    model = fold(load(float_network()[0]))
    assert NativeRunner(model, 1).notes == lower(model).notes
    assert NativeRunner(replace(model), 1).from_image() is None  # no task
