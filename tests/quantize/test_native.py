"""What the native target asks for: scales per channel, tables, shared Concats, exact pictures, ranges by readers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_graphs import N, build, ort, rand
from roadworthy.data.preprocess import Preprocess
from roadworthy.data.samples import Sample, Samples
from roadworthy.detect.spec import DecodeSpec
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding, QuantSpec, encoding_of_ranges
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import from_qdq, to_qdq
from roadworthy.model.task import Task
from roadworthy.model.units import units
from roadworthy.quantize import readers
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.place import place
from roadworthy.quantize.quantize import activation_encodings
from roadworthy.quantize.refine import image_encoding, refine, table_encoding
from roadworthy.quantize.statistics import Statistics
from roadworthy.quantize.weights import widen_for_bias
from roadworthy.recipe import CorrectBias, Quantize
from roadworthy.run.arithmetic import int8_refusal, unit_epilogue
from roadworthy.run.reference import ReferenceRunner
from roadworthy.run.targets import TARGETS

NATIVE = TARGETS["native"]
SPREAD = np.array([0.02, 1, 1, 30], np.float32).reshape(4, 1, 1, 1)
STEM = N("Conv", ["x", "w"], ["c"], name="stem", pads=[1, 1, 1, 1])
DEEP = N("Conv", ["a", "d", "db"], ["e"], name="deep", group=4, pads=[1, 1, 1, 1])
LAST = N("Conv", ["b", "v"], ["y"], name="last")
WEIGHTS = {
    "w": rand(4, 3, 3, 3) / 5 * SPREAD,
    "d": rand(4, 1, 3, 3) / 3 / SPREAD,
    "db": rand(4),
    "v": rand(5, 4, 1, 1) / 2,
    "u": rand(4, 4, 1, 1) / 2,
}
SILU = [N("Sigmoid", ["c"], ["s"]), N("Mul", ["c", "s"], ["a"])]
NET = [STEM, *SILU, DEEP, N("Relu", ["e"], ["b"]), LAST]
TASK = Task(Preprocess((8, 8), "stretch", scale=1 / 255), DecodeSpec("raw"))


def network(nodes=NET, **others) -> Model:
    return load(build(nodes, WEIGHTS, **others), TASK)


def pictures(count: int = 6) -> Samples:
    def picture(k: int) -> Sample:
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8, 3), np.uint8)
        return Sample(f"{k}.png", load=lambda: pixels, key=str(k))

    return Samples([picture(k) for k in range(count)])


def tensors(count: int = 6) -> list[NDArray]:
    return [TASK.preprocess(s.image())[0] for s in pictures(count)]


def test_only_depthwise_readers_give_scales_per_channel_and_the_tail_is_int8_with_float_results():
    found = place(network().ir, NATIVE)
    assert found.int8 == {"stem", "deep", "last"} and not found.why_float
    assert found.channels == {"a"} and not found.tables  # what has scales per channel has no table
    assert set(found.source) == {"x", "a", "b"}  # y is float, so it has no codes
    assert not place(network().ir, TARGETS["ort"]).channels
    for reader in (N("Conv", ["a", "u"], ["z"]), N("Neg", ["a"], ["z"])):
        assert not place(network([*NET, reader], outputs=("y", "z")).ir, NATIVE).channels
    assert not place(network(outputs=("y", "a")).ir, NATIVE).channels
    kept = place(network().ir, NATIVE, frozenset({"deep"}))
    assert not kept.channels and kept.int8 == {"stem", "last"}


def test_a_dense_reader_gives_one_scale_and_a_site_for_a_table():
    found = place(network([STEM, *SILU, N("Conv", ["a", "u"], ["b"]), LAST]).ir, NATIVE)
    assert not found.channels and found.tables == {"c": "a"} and "c" in found.observed


def test_every_channel_is_encoded_by_its_own_extremes():
    model = network()
    placement = place(model.ir, NATIVE)
    statistics = calibrate(model, placement.observed, tensors(), 1, per_channel=placement.channels)
    found = activation_encodings(placement, statistics, NATIVE, "minmax")["a"]
    inside = build(NET, WEIGHTS, outputs=("a",))
    every = np.stack([ort(inside, x)["a"][0] for x in tensors()])  # images, C, H, W
    lo, hi = np.minimum(every.min((0, 2, 3)), 0), np.maximum(every.max((0, 2, 3)), 0)
    span = np.maximum(hi - lo, (hi - lo).max() / 256)
    assert found.axis == 1
    np.testing.assert_allclose(found.scale, span / 255, rtol=1e-5)
    assert found.scale.max() > 20 * found.scale.min()


def test_ranges_behind_a_relu_keep_one_zero_point():
    """Else the clamp's codes would differ between channels, and no clamp on codes would do."""
    hi = np.array([0.0, 1e-6, 0.3, 100.0])
    found = encoding_of_ranges(np.zeros(4), hi, QuantSpec(axis=1))
    assert (found.zero_point == 0).all()
    np.testing.assert_allclose(found.scale[:3], [100 / 256 / 255] * 2 + [100 / 256 / 255], rtol=1e-6)


def test_biases_of_a_depthwise_layer_are_widened_channel_by_channel():
    encoding = Encoding(np.full(3, 1e-6, np.float32), np.zeros(3, np.int64), 8, True, 0)
    bias, scale = np.array([1.0, 1.0, 1.0]), np.array([1e-6, 1.0, 1e-2], np.float32)
    found = widen_for_bias(encoding, bias, scale).scale
    assert (np.abs(bias) / (found.astype(np.float64) * scale) <= 2**30 * (1 + 1e-6)).all()
    assert found[0] > 1e-6 and found[1] == found[2] == np.float32(1e-6)


def test_a_network_with_scales_per_channel_goes_out_and_comes_back():
    small = Quantize("native")(network(), pictures())
    assert small.encodings["a"].axis == 1
    back = from_qdq(load(to_qdq(small)))
    assert dict(back.encodings) == dict(small.encodings) and to_qdq(back) == to_qdq(small)


@pytest.mark.parametrize("observer", ["mse", "minmax", "percentile"])
def test_the_exported_file_is_what_the_reference_computes(observer: str):
    """ONNX Runtime on Q/DQ nodes against the arithmetic in integers. The two differ where a value lies within float
    error (or the polynomial's, below a tenth of a code here) of the middle between two codes: by one code of a or b."""
    small = CorrectBias()(Quantize("native", observer)(network(), pictures()), pictures())
    assert unit_epilogue(units(small.ir)[0], small.encodings).kind == "poly"
    assert all(int8_refusal(u, small.encodings) is None for u in units(small.ir))
    reference, exported = ReferenceRunner(small), to_qdq(small)
    weight = small.encodings["v"].dequantize(small.encodings["v"].quantize(WEIGHTS["v"]))[:, :, 0, 0]
    step = float(small.encodings["b"].scale)
    bound = 2 * step * np.abs(weight).sum(1).max()  # every input of an output pixel off by two codes of b
    for x in tensors(3):
        a, b = reference.run({"x": x})["y"], ort(exported, x, optimize=False)["y"]
        assert np.abs(a - b).max() <= bound
        assert np.mean(np.abs(a - b)) < 0.02 * np.abs(b).max()
        true = ort(build(NET, WEIGHTS), x)["y"]
        assert np.sqrt(np.mean((a - true) ** 2)) < 0.03 * np.sqrt(np.mean(true**2))


PADS = {
    "zeros": ((), {}, True),
    "a zero that is stated": (("none",), {}, True),
    "another number": (("one",), {}, False),
    "edge": ((), {"mode": "edge"}, True),
    "reflect": ((), {"mode": "reflect"}, True),
}


@pytest.mark.parametrize("number, how, moves", PADS.values(), ids=PADS)
def test_a_pad_moves_codes_where_its_number_has_one(number, how, moves):
    more = {"amounts": np.array([0, 0, 1, 0, 0, 0, 0, 1]), "none": np.float32(0), "one": np.float32(1)}
    pool = N("AveragePool", ["p"], ["b"], kernel_shape=[2, 2])
    nodes = [STEM, *SILU, N("Pad", ["a", "amounts", *number], ["p"], **how), pool, LAST]
    model = load(build(nodes, {**WEIGHTS, **more}), TASK)
    placement = place(model.ir, NATIVE)
    assert placement.source.get("p") == ("a" if moves else None)
    small = Quantize("native")(model, pictures())
    reference, exported = ReferenceRunner(small), to_qdq(small)
    held = [o.form for o in reference.operations if o.nodes[0].op_type == "AveragePool"]
    assert held == (["average"] if moves else ["float"])
    step = max(float(small.encodings[n].scale) for n in ("a", "b") if n in small.encodings)
    bound = 2 * step * np.abs(WEIGHTS["v"]).sum((1, 2, 3)).max()  # as above: every input of a pixel off by two codes
    for x in tensors(3):
        difference = ort(exported, x, optimize=False)["y"] - reference.run({"x": x})["y"]
        assert np.abs(difference).max() <= bound and np.median(np.abs(difference)) < 0.02 * bound


def test_one_scale_for_all_channels_is_far_worse():
    """What the scales per channel are for: a channel of a thousandth of the widest range."""
    model, true = network(), [ort(build(NET, WEIGHTS), x)["y"] for x in tensors()]
    small = Quantize("native", "minmax")(model, pictures())
    wide = small.encodings["a"]
    one = Encoding(wide.scale.max(), wide.zero_point[wide.scale.argmax()])
    weights = {n: e for n, e in small.encodings.items() if n != "a"}

    def error(m: Model) -> float:
        return float(np.mean([(ort(to_qdq(m), x, optimize=False)["y"] - t) ** 2 for x, t in zip(tensors(), true)]))

    assert error(small) < 0.2 * error(small.with_encodings({**weights, "a": one}, "one scale"))


LEVELS = np.arange(256)
RECIPES = {
    "raw": ({}, 0.0),
    "unit": ({"scale": 1 / 255}, 0.0),
    "symmetric": ({"scale": 1 / 127.5, "mean": (1.0,) * 3}, 0.1),
    "imagenet": ({"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}, 0.1),
}


@pytest.mark.parametrize("case", RECIPES)
def test_pictures_keep_their_levels(case: str):
    settings, most = RECIPES[case]
    preprocess = Preprocess((8, 8), **settings)
    found = image_encoding(preprocess)
    levels = (LEVELS[:, None] * preprocess.scale - np.array(preprocess.mean)) / np.array(preprocess.std)
    error = found.fake(levels) - levels
    assert np.abs(error).max() <= 0.51 * float(found.scale) + 1e-6  # nothing is cut off
    # Rounding that is evenly spread has the variance 1/12; half-way levels all rounded one way would have 1/4.
    assert np.mean((error / float(found.scale)) ** 2) <= most + 1e-9
    if case == "raw":
        assert (float(found.scale), int(found.zero_point)) == (1.0, 0)


@pytest.mark.parametrize(("factor", "shared"), [(0.25, True), (300.0, False)])
def test_concats_share_where_that_costs_little(factor: float, shared: bool):
    """`r` is read by the Concat and by another layer, so it matters to that one; `k` by the Concat alone."""
    nodes = [
        STEM,
        N("Relu", ["c"], ["r"]),
        N("Conv", ["r", "u2"], ["f"], name="wide"),
        N("Relu", ["f"], ["k"]),
        N("Concat", ["r", "k"], ["b"], axis=1),
        N("Conv", ["b", "v2"], ["y"], name="last"),
    ]
    weights = {"w": rand(4, 3, 3, 3), "u2": factor * np.abs(rand(4, 4, 1, 1)), "v2": rand(5, 8, 1, 1)}
    model = load(build(nodes, weights), TASK)
    placement = place(model.ir, NATIVE)
    statistics = calibrate(model, placement.observed, tensors(), 1, per_channel=placement.channels)
    plain = activation_encodings(placement, statistics, NATIVE, "minmax")
    found = refine(model, placement, statistics, plain)
    assert found["k"] == found["b"] == plain["b"]
    assert (found["r"] == found["b"]) is shared


def table_site(gain: float) -> tuple[Model, dict, dict]:
    nodes = [STEM, *SILU, N("Conv", ["a", "u"], ["b"], name="middle"), LAST]
    model = load(build(nodes, {**WEIGHTS, "w": gain * rand(4, 3, 3, 3) / 5}), TASK)
    placement = place(model.ir, NATIVE)
    statistics = calibrate(model, placement.observed, tensors(), 1)
    return model, statistics, activation_encodings(placement, statistics, NATIVE, "minmax")


def test_a_table_where_it_costs_little():
    model, statistics, activations = table_site(1.0)
    unit = units(model.ir)[0]
    fine, coarse = activations["a"], replace(activations["a"], scale=np.asarray(activations["a"].scale * 8))
    assert table_encoding(model, unit, statistics["c"], coarse, 3.0) is not None
    assert table_encoding(model, unit, statistics["c"], fine, 1.0001) is None
    assert table_encoding(model, unit, statistics["c"], coarse, 0.0) is None
    found = table_encoding(model, unit, statistics["c"], coarse, 3.0)
    assert found is not None
    # An independent look: every value of the range, by table and directly, at most one code apart.
    p = np.linspace(statistics["c"].lo, statistics["c"].hi, 5001)
    direct = coarse.quantize(p / (1 + np.exp(-p))).astype(int)
    rounded = found.fake(p).astype(np.float64)
    assert np.abs(coarse.quantize(rounded / (1 + np.exp(-rounded))).astype(int) - direct).max() <= 1


def test_a_range_is_cut_where_the_reader_saturates():
    """Channel 1 reaches far beyond 6 / weight, where the reader's Clip has long been reached: brute force agrees."""
    nodes = [
        N("Relu", ["x"], ["a"]),
        N("Conv", ["a", "d"], ["e"], name="deep", group=3),
        N("Clip", ["e", "zero", "six"], ["b"]),
        N("Conv", ["b", "v"], ["y"], name="last"),
    ]
    gains = np.array([0.5, 6.0, 0.7], np.float32)
    weights = {"d": gains.reshape(3, 1, 1, 1), "zero": np.float32(0), "six": np.float32(6), "v": rand(4, 3, 1, 1)}
    stem = N("Conv", ["x", "i"], ["x0"], name="stem")
    nodes[0] = N("Relu", ["x0"], ["a"])
    model = load(build([stem, *nodes], {**weights, "i": np.eye(3, dtype=np.float32)[:, :, None, None]}), TASK)
    images = [np.abs(rand(1, 3, 8, 8, seed=k)) * 3 for k in range(3)]
    placement = place(model.ir, NATIVE)
    assert placement.channels == {"a"}
    statistics = calibrate(model, placement.observed, images, 1, per_channel=placement.channels)
    plain = activation_encodings(placement, statistics, NATIVE, "minmax")
    known: dict = {}
    found = readers.encodings_by_readers(model, placement, statistics, plain, lambda: images, known)["a"]
    every = np.stack([x[0] for x in images])  # images, C, H, W
    for c in range(3):
        errors = []
        for t in readers.CLIPS:
            scale = np.float32(max(every[:, c].max() * t, every.max() / 256) / 255)
            rounded = np.clip(np.rint(every[:, c] / scale), 0, 255) * scale
            errors.append(np.sum((np.clip(gains[c] * rounded, 0, 6) - np.clip(gains[c] * every[:, c], 0, 6)) ** 2))
        share = float(found.scale[c]) * 255 / every[:, c].max()
        widest = next(t for t, e in zip(readers.CLIPS, errors) if e <= readers.CUT * min(errors))
        assert share == pytest.approx(widest, rel=1e-5)
    assert float(found.scale[1]) < 0.5 * float(plain["a"].scale[1])
    again = readers.encodings_by_readers(model, placement, statistics, plain, list, known)  # no images are asked for
    assert again["a"] == found


def test_a_layer_that_would_overflow_computes_in_float_and_is_named():
    rows = 70_000  # 127 * 255 * 70000 > 2^31
    nodes = [N("Relu", ["x"], ["r"]), N("Flatten", ["r"], ["f"]), N("Gemm", ["f", "k"], ["y"], name="huge")]
    model = load(
        build(nodes, {"k": np.ones((rows, 2), np.float32)}, x=(1, 1, 280, 250)),
        Task(Preprocess((280, 250), "stretch", color="gray", mean=(0.0,), std=(1.0,)), DecodeSpec("raw")),
    )
    pixels = np.full((280, 250, 3), 255, np.uint8)
    small = Quantize("native", "minmax")(model, Samples([Sample("a", load=lambda: pixels, key="a")]))
    assert small.encodings["k"].storage and "r" not in small.encodings


def test_every_image_counts_alike_when_ranges_are_tried():
    """Relative errors of a loud and a quiet image, with NumPy; a quiet one would not count in a sum of squares."""
    model = load(build([N("Conv", ["x", "u"], ["a"]), N("Conv", ["a", "v"], ["y"])], WEIGHTS, (1, 4, 5, 5)))
    value, unit = g.values(model.ir)["a"], units(model.ir)[1]
    images = [rand(1, 4, 5, 5), 0.01 * rand(1, 4, 5, 5, seed=1)]
    statistics = Statistics()
    for x in images:
        statistics.update(x)
    search = readers._Search(model, value, [unit], statistics, None)
    for x in images:
        search.look(x)

    def layer(x: NDArray) -> NDArray:
        return np.einsum("oc,chw->ohw", WEIGHTS["v"][:, :, 0, 0].astype(np.float64), x[0].astype(np.float64))

    for encoding, found in zip(search.candidates, search._sums, strict=True):
        errors = [np.square(layer(encoding.fake(x)) - layer(x)).sum() / np.square(layer(x)).sum() for x in images]
        np.testing.assert_allclose(found, sum(errors), rtol=1e-3)  # float32 differences of close numbers
        assert errors[1] > 20 * errors[0] or encoding is not search.candidates[0]
