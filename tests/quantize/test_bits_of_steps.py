"""Quantize and StoreWeights with bits, grids and scales: what each setting does to a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnx_graphs import N, build, ort, rand
from roadworthy.data.preprocess import Preprocess
from roadworthy.data.samples import Sample, Samples
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.encoding import narrow_codes
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import to_qdq
from roadworthy.model.task import Task
from roadworthy.recipe import CorrectBias, Quantize, Recipe, StoreWeights, read_recipe
from roadworthy.run.targets import TARGETS

native = pytest.mark.skipif(not TARGETS["native"].available(), reason="needs the compiled engine (make native)")
WEIGHTS = {"w": rand(16, 3, 3, 3) / 5, "b": rand(16), "d": rand(16, 1, 3, 3), "v": rand(8, 16, 1, 1), "c": rand(8)}
NODES = [
    N("Conv", ["x", "w", "b"], ["a"], name="stem"), N("Relu", ["a"], ["r"]),
    N("Conv", ["r", "d"], ["e"], name="deep", group=16), N("Relu", ["e"], ["s"]),
    N("Conv", ["s", "v", "c"], ["p"], name="last"), N("Sigmoid", ["p"], ["q"]), N("Mul", ["p", "q"], ["y"]),
]  # fmt: skip


def small() -> Model:
    task = Task(Preprocess((16, 16), "stretch", scale=1 / 255), DecodeSpec("raw"))
    return load(build(NODES, WEIGHTS, (1, 3, 16, 16)), task)


def pictures(count: int = 6) -> Samples:
    def picture(k: int) -> Sample:
        pixels = np.random.default_rng(k).integers(0, 256, (20, 24, 3), np.uint8)
        return Sample(f"{k}.png", load=lambda: pixels, key=str(k))

    return Samples([picture(k) for k in range(count)])


def weight_codes(model: Model) -> dict[str, np.ndarray]:
    known = {n: g.constant(v) for n, v in g.values(model.ir).items() if n in model.encodings}
    return {n: narrow_codes(w, model.encodings[n]) for n, w in known.items() if w is not None}


def noise(made: Model, target: str = "native") -> float:
    """Of the outputs on pictures, relative."""
    model, sum_noise, signal = small(), 0.0, 0.0
    runner = TARGETS[target].runner(to_qdq(made), 1)
    assert model.task is not None
    for sample in pictures():
        x = model.task.preprocess(sample.image())[0]
        wanted = ort(model.float_bytes(), x)["y"]
        sum_noise += float(np.square(runner.run({"x": x})["y"] - wanted).sum())
        signal += float(np.square(wanted).sum())
    return sum_noise / signal


def test_bits_of_all_layers_and_of_single_ones():
    made = Quantize("native", weight_bits=4, bits=(("deep", 6), ("last", 2)))(small(), pictures())
    tops = {n: int(np.abs(c).max()) for n, c in weight_codes(made).items()}
    assert tops == {"w": 7, "d": 31, "v": 1}
    assert {n: made.encodings[n].bits for n in tops} == {"w": 4, "d": 6, "v": 2}
    stored = StoreWeights(weight_bits=3, bits=(("stem", 5),), wide=("last",))(small(), pictures())
    assert {n: (stored.encodings[n].bits, stored.encodings[n].storage) for n in ("w", "d", "v")} == {
        "w": (5, True), "d": (3, True), "v": (16, True)
    }  # fmt: skip


def test_layers_outside_int8_have_the_bits_that_were_asked_for():
    made = Quantize("native", keep_float=("stem",), wide=("last",), weight_bits=4)(small(), pictures())
    assert {n: (e.bits, e.storage) for n, e in made.encodings.items() if n in WEIGHTS} == {
        "w": (4, True), "d": (4, False), "v": (16, True)
    }  # fmt: skip


@pytest.mark.parametrize(
    "step", [Quantize("native", grid="log2", weight_bits=5), StoreWeights(grid="log2", weight_bits=5)]
)
def test_logarithmic_levels_take_wider_codes_only_where_they_are_stored(step):
    made = step(small(), pictures()).encodings["w"]
    assert made.levels is not None
    assert len(made.levels) == (31 if made.storage else 15) and made.bits == (16 if made.storage else 8)


def test_one_scale_per_tensor():
    for step in (Quantize("native", granularity="tensor"), StoreWeights(granularity="tensor")):
        assert all(step(small(), pictures()).encodings[n].axis is None for n in ("w", "d", "v"))


@native
@pytest.mark.parametrize("target", ["ort", "native"])
def test_scales_of_powers_of_two(target: str):
    """Every scale is one, shifts are all that a device needs; and it costs what at most twice the step costs."""
    free, shifted = (Recipe((Quantize(target, scales=s), CorrectBias())).apply(small(), pictures())
                     for s in ("free", "power_of_two"))  # fmt: skip
    assert all((np.frexp(e.scale)[0] == 0.5).all() for e in shifted.encodings.values())
    assert not all((np.frexp(e.scale)[0] == 0.5).all() for e in free.encodings.values())
    assert set(shifted.encodings) == set(free.encodings)
    assert noise(shifted, target) < 4 * noise(free, target)


@native
def test_fewer_bits_cost_more_and_clusters_cost_less():
    def of(**settings: object) -> float:
        steps = (Quantize("native", **settings), CorrectBias())  # type: ignore[arg-type]
        return noise(Recipe(steps).apply(small(), pictures()))

    by_bits = [of(weight_bits=b) for b in (8, 6, 4, 2)]
    assert by_bits == sorted(by_bits) and by_bits[0] < 0.001 < by_bits[3]
    assert of(weight_bits=3, grid="kmeans") < 0.8 * of(weight_bits=3)
    assert of(weight_bits=8, grid="kmeans") == by_bits[0]  # no harm where all codes fit


def test_the_same_seed_gives_the_same_bytes():
    step = Quantize("native", weight_bits=4, grid="kmeans", scales="power_of_two")
    assert to_qdq(step(small(), pictures())) == to_qdq(step(small(), pictures()))


@pytest.mark.parametrize("step", [
    Quantize("native", weight_bits=4, bits=(("stem", 6), ("last", 8)), granularity="tensor", grid="kmeans"),
    Quantize("ort", activation_bits=16, scales="power_of_two"), Quantize("ort", wide_activations=("stem", "r")),
    StoreWeights(weight_bits=5, bits=(("deep", 3),), grid="log2"),
])  # fmt: skip
def test_settings_are_written_and_read_back(step: object, tmp_path: Path):
    (tmp_path / "r.yaml").write_text(Recipe((step,)).to_yaml())
    assert read_recipe(tmp_path / "r.yaml")[0] == Recipe((step,))


@pytest.mark.parametrize(("made", "words"), [
    (lambda: Quantize("native", weight_bits=9), "`Quantize.weight_bits` is 9; give numbers from 2 to 8"),
    (lambda: Quantize("native", bits=(("stem", 1),)), "`Quantize.bits` is 1"),
    (lambda: Quantize("native", bits=(("nobody", 4),)), "names the layer 'nobody'"),
    (lambda: Quantize("native", grid="cubic"), "`Quantize.grid` is 'cubic'; known are linear, log2, kmeans"),
    (lambda: Quantize("native", scales="short"), "`Quantize.scales` is 'short'"),
    (lambda: Quantize("ort", activation_bits=12), "`Quantize.activation_bits` is 12; known are 8, 16"),
    (lambda: Quantize("native", activation_bits=16), "the target native has no 16-bit activations"),
    (lambda: StoreWeights(granularity="row"), "`StoreWeights.granularity` is 'row'"),
    (lambda: StoreWeights(bits=(("nobody", 4),)), "names the layer 'nobody'"),
])  # fmt: skip
def test_what_cannot_be_is_refused_by_name(made, words: str):
    with pytest.raises(InputError, match=words.replace(".", r"\.")):
        made()(small(), pictures())
