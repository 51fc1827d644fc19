"""Faults are planted one at a time in exported models; alignment must name the right layer first, and no other."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from planting import Surgery
from small_network import images, network, quantized, stored

from roadworthy.check.align import Alignment, align
from roadworthy.data.preprocess import Preprocess
from roadworthy.data.readers import read
from roadworthy.detect.spec import DecodeSpec
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import to_qdq
from roadworthy.model.recognize import recognize
from roadworthy.model.task import Task
from roadworthy.model.units import units
from roadworthy.quantize.place import Placement
from roadworthy.quantize.quantize import quantize_units
from roadworthy.recipe import CorrectBias, Fold, Quantize, Recipe, StoreWeights

ASSETS = Path(os.environ.get("ROADWORTHY_ASSETS", Path(__file__).parents[2].parent / "shared" / "assets"))
LAYERS = ("stem", "dw1", "pw1", "down", "dw2", "pw2", "neck", "boxes", "scores")
FORMS = ("ort", "openvino", "stored")


@cache
def original() -> Model:
    return network()


@cache
def exported(form: str) -> bytes:
    return to_qdq(stored(original()) if form == "stored" else quantized(original(), form))


def aligned(surgery: Surgery, count: int = 4) -> Alignment:
    return align(original(), load(surgery.bytes()), images(count), threads=1)


def only(outcome: Alignment, kind: str, where: str) -> str:
    """The text of the one finding there is."""
    assert [(f.kind, f.where) for f in outcome.findings] == [(kind, where)]
    assert outcome.first_where == where
    return outcome.findings[0].text


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 8])
def test_sound_model_has_no_findings(form: str, count: int) -> None:
    outcome = aligned(Surgery(exported(form)), count)
    assert outcome.findings == ()
    assert min(t.accumulated.sqnr_db for t in outcome.tensors) < 60  # it was rounded, after all


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_weight_scale(form: str, name: str) -> None:
    factor = 1.02 if LAYERS.index(name) % 2 else 0.98
    surgery = Surgery(exported(form))
    if not surgery.is_quantized(surgery.layer(name)):
        pytest.skip(f"{name} keeps float weights")
    surgery.scale_weights(surgery.layer(name), factor)
    text = only(aligned(surgery, 2), "scale", name)
    assert "every channel" in text
    assert ("too large" if factor > 1 else "too small") in text


@pytest.mark.parametrize("name", ["stem", "dw1", "dw2", "neck"])
def test_weight_scale_of_one_channel(name: str) -> None:
    surgery = Surgery(exported("ort"))
    surgery.scale_weights(surgery.layer(name), 1.02, channel=3)
    assert only(aligned(surgery, 2), "scale", name).startswith("channel 3 of ")


@pytest.mark.parametrize("name", LAYERS)
def test_dropped_bias(name: str) -> None:
    surgery = Surgery(exported("ort"))
    surgery.drop_bias(surgery.layer(name))
    assert "bias is missing" in only(aligned(surgery, 2), "shift", name)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["stem", "dw1", "pw2", "neck"])
def test_exchanged_channels(name: str, axis: int) -> None:
    if axis == 1 and name == "dw1":
        pytest.skip("a depthwise kernel has one input channel")
    surgery = Surgery(exported("ort"))
    surgery.swap_channels(surgery.layer(name), 0, 2, axis)
    text = only(aligned(surgery, 2), "permuted", name)
    assert "channels 0 and 2" in text
    assert ("output" if axis == 0 else "input") in text


ENCODINGS = {"reading": ("scale", 1.02), "too small": ("stale-encoding", 1 / 3), "too large": ("stale-encoding", 10.0)}


def _plant_encoding(surgery: Surgery, index: int, fault: str) -> str:
    """Plant at one pair; returns the value."""
    pair, factor = surgery.pairs()[index], ENCODINGS[fault][1]
    (surgery.scale_reading if fault == "reading" else surgery.scale_encoding)(pair, factor)
    return pair[0].input[0].removesuffix("/raw")


@pytest.mark.parametrize("fault", ENCODINGS)
@pytest.mark.parametrize("index", [0, 7, 14, -1])
def test_one_encoding(fault: str, index: int) -> None:
    """A wrong scale, or a stale range: the layer that makes the value is named, not those that read it."""
    surgery = Surgery(exported("ort"))
    name = _plant_encoding(surgery, index, fault)
    outcome = aligned(surgery, 4)
    assert [(f.kind, f.output) for f in outcome.findings] == [(ENCODINGS[fault][0], name)]
    assert outcome.first_where == outcome.findings[0].where
    if fault == "reading":
        assert "2.0 % too large" in outcome.findings[0].text


@pytest.mark.parametrize("fault", ENCODINGS)
def test_every_encoding_at_once(fault: str) -> None:
    """Layers are judged one by one, so even a network in which everything is wrong is described value by value."""
    surgery = Surgery(exported("ort"))
    names = {_plant_encoding(surgery, k, fault) for k in range(len(surgery.pairs()))}
    assert len(names) > 15
    findings = aligned(surgery, 4).findings
    assert {f.output for f in findings} == names
    assert {f.kind for f in findings} == {ENCODINGS[fault][0]}


def test_other_zero_point_when_reading() -> None:
    surgery = Surgery(exported("openvino"))
    _, dq = surgery.pairs()[3]
    dq.input[2] = surgery.new(surgery.array(dq.input[2]) + np.uint8(3))
    assert [f.kind for f in aligned(surgery, 1).findings] == ["shift"]


def test_changed_attribute_of_a_node_without_weights() -> None:
    surgery = Surgery(exported("openvino"))
    node = next(n for n in surgery.graph.node if n.op_type == "Resize")
    next(a for a in node.attribute if a.name == "nearest_mode").s = b"ceil"
    outcome = aligned(surgery, 2)
    assert outcome.findings[0].where == "up"
    assert {f.where for f in outcome.findings} == {"up"}


def test_exchanged_inputs_of_a_concat() -> None:
    surgery = Surgery(exported("stored"))
    node = next(n for n in surgery.graph.node if n.name == "head")
    first, second = node.input
    node.input[0], node.input[1] = second, first
    assert {f.where for f in aligned(surgery, 2).findings} == {"head"}


def test_weights_that_overflow() -> None:
    surgery = Surgery(exported("stored"))
    surgery.scale_weights(surgery.layer("pw1"), 1e38)
    outcome = aligned(surgery, 1)
    assert outcome.findings[0].where == "pw1"
    assert "overflows" in outcome.findings[0].text


def test_two_faults_are_both_named_worst_first() -> None:
    surgery = Surgery(exported("ort"))
    surgery.scale_weights(surgery.layer("stem"), 1.02)
    surgery.drop_bias(surgery.layer("neck"))
    outcome = aligned(surgery)
    assert [(f.kind, f.where) for f in outcome.findings] == [("shift", "neck"), ("scale", "stem")]
    assert outcome.first_where == "stem"


PRE = Preprocess(size_hw=(32, 32), color="bgr")
DECODE = DecodeSpec("yolox", num_classes=4, input_hw=(32, 32), strides=(8, 16, 32))
TASK = Task(PRE, DECODE)


@pytest.mark.parametrize(
    ("changed", "kind", "where", "said"),
    [
        (replace(TASK, preprocess=replace(TASK.preprocess, color="rgb")), "input-contract", "preprocess.color", "bgr"),
        (
            replace(TASK, preprocess=replace(TASK.preprocess, scale=1 / 255)),
            "input-contract",
            "preprocess.scale",
            "1.0",
        ),
        (
            replace(TASK, decode=replace(TASK.decode, strides=(8, 16, 16))),
            "decode-contract",
            "decode.strides",
            "16, 32",
        ),
    ],
)
def test_contracts(changed: Task, kind: str, where: str, said: str) -> None:
    surgery = Surgery(exported("ort"))
    surgery.scale_weights(surgery.layer("down"), 1.02)
    small = load(surgery.bytes()).with_task(changed)
    findings = align(original().with_task(TASK), small, images(1), threads=1).findings
    assert [(f.kind, f.where) for f in findings] == [(kind, where), ("scale", "down")]
    assert said in findings[0].text
    sound = align(original().with_task(TASK), load(exported("ort")).with_task(TASK), images(1), threads=1)
    assert sound.findings == ()


# Real networks.

DATA = {"yolox_nano": ("coco/data.yaml", 0), "fastestdet": ("coco/data.yaml", 0), "mobilenet_v1_075": ("imagenet", 1)}


def _need_assets() -> None:
    if not (ASSETS / "models").exists():
        pytest.skip(f"{ASSETS} is absent: the real models and images are not part of the project")


@cache
def real(name: str) -> tuple[Model, list[np.ndarray]]:
    data, contract = DATA[name]
    model = load(ASSETS / "models" / f"{name}.onnx")
    found = recognize(model)
    task = Task(found.preprocess[contract], found.decode)
    samples = read(ASSETS / data).test
    return model.with_task(task), [task.preprocess(s.image())[0] for s in list(samples)[:4]]


@cache
def real_small(name: str) -> bytes:
    model, _ = real(name)
    recipe = Recipe((Fold(), Quantize("ort"), CorrectBias()), images=8)
    return to_qdq(recipe.apply(model, read(ASSETS / DATA[name][0]).calibration))


@pytest.mark.assets
@pytest.mark.parametrize("name", DATA)
def test_real_sound_models(name: str) -> None:
    _need_assets()
    model, tensors = real(name)
    outcome = align(model, load(real_small(name)), tensors, threads=2)
    assert outcome.findings == ()
    assert len(outcome.rows()) > 25
    weights_only = Recipe((StoreWeights(),)).apply(model, read(ASSETS / DATA[name][0]).calibration)
    assert align(model, load(to_qdq(weights_only)), tensors[:1], threads=2).findings == ()


@pytest.mark.assets
def test_real_sound_residual_network() -> None:
    """ResNet-56, 55 convolutions deep, on noise."""
    _need_assets()
    model = load(ASSETS / "models" / "cifar10_resnet56.onnx")
    tensors = np.random.default_rng(0).normal(size=(2, *model.input_shape)).astype(np.float32)
    small = quantize_units(model, Placement(frozenset(), {}, {}), {}, "mse", {u.name: 8 for u in units(model.ir)})
    outcome = align(model, load(to_qdq(small)), tensors, threads=2)
    assert outcome.findings == ()
    assert outcome.first_where is None


def _layer(surgery: Surgery, place: float | str) -> onnx.NodeProto:
    layers = [n for n in surgery.layers() if surgery.is_quantized(n)]
    if place == "depthwise":
        layers = [n for n in layers if any(a.name == "group" and a.i > 1 for a in n.attribute)]
        place = 0.5
    return layers[int(float(place) * (len(layers) - 1))]


@pytest.mark.assets
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("place", [0.35, "depthwise"])
def test_real_weight_scale(name: str, place: float | str) -> None:
    _need_assets()
    model, tensors = real(name)
    surgery = Surgery(real_small(name))
    layer = _layer(surgery, place)
    surgery.scale_weights(layer, 1.02)
    outcome = align(model, load(surgery.bytes()), tensors[:1], threads=2)
    assert [(f.kind, f.where) for f in outcome.findings] == [("scale", layer.name)]


@pytest.mark.assets
@pytest.mark.parametrize("name", DATA)
def test_many_faults_in_a_real_network(name: str) -> None:
    """Eight at once: each layer is judged on its own, so all are named and nothing else is."""
    _need_assets()
    model, tensors = real(name)
    surgery = Surgery(real_small(name))
    planted = []
    for place, factor in ((0.0, 1.02), (0.2, 0.98), (0.6, 1.02), (1.0, 0.98)):
        layer = _layer(surgery, place)
        surgery.scale_weights(layer, factor)
        planted.append(("scale", layer.output[0].removesuffix("/raw")))
    layer = _layer(surgery, 0.8)
    surgery.drop_bias(layer)
    planted.append(("shift", layer.output[0].removesuffix("/raw")))
    pairs = surgery.pairs()
    for place, kind, factor in ((0.3, "scale", 1.02), (0.9, "scale", 0.98), (0.1, "stale-encoding", 1 / 3)):
        pair = pairs[int(place * len(pairs))]
        (surgery.scale_reading if kind == "scale" else surgery.scale_encoding)(pair, factor)
        planted.append((kind, pair[0].input[0].removesuffix("/raw")))
    findings = align(model, load(surgery.bytes()), tensors[:1], threads=2).findings
    assert sorted((f.kind, f.output) for f in findings) == sorted(planted)
