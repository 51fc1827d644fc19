"""Real networks: quantized for each target, written, read back, and run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from roadworthy.model import graph as g
from roadworthy.model.model import load
from roadworthy.model.qdq import from_qdq, to_qdq
from roadworthy.optimize import fold
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.place import place
from roadworthy.quantize.quantize import activation_encodings, quantize_units
from roadworthy.run.targets import TARGETS

pytestmark = pytest.mark.assets


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["mobilenet_v1_075", "fastestdet", "cifar10_resnet56", "yolox_nano"])
def test_goes_out_comes_back_and_runs(name: str, target: str, assets: Path):
    model = fold(load(assets / "models" / f"{name}.onnx"))
    assert all(g.static_shape(v) is not None for v in g.values(model.ir).values())
    placement = place(model.ir, TARGETS[target])
    assert len(placement.int8) > 0.85 * (len(placement.int8) + len(placement.why_float))
    noise = np.random.default_rng(0).normal(size=model.input_shape).astype(np.float32)
    statistics = calibrate(model, placement.observed, [noise], 2, per_channel=placement.channels)
    activations = activation_encodings(placement, statistics, TARGETS[target], "minmax")
    small = quantize_units(model, placement, activations, "minmax", {n: 8 for n in placement.why_float})
    exported = to_qdq(small)
    # Codes are a quarter of the weights; the rest is the graph itself, large beside the weights of a nano detector.
    assert len(exported) < 0.5 * model.size
    back = from_qdq(load(exported))
    assert dict(back.encodings) == dict(small.encodings) and to_qdq(back) == exported
    place_to_run = target if TARGETS[target].available() else "ort"
    outputs = TARGETS[place_to_run].runner(exported, 2).run({model.input_name: noise})
    before = TARGETS["ort"].runner(model.float_bytes(), 2).run({model.input_name: noise})
    for key, wanted in before.items():
        assert outputs[key].shape == wanted.shape and np.isfinite(outputs[key]).all()
        assert (
            np.corrcoef(outputs[key].ravel(), wanted.ravel())[0, 1] > 0.7
        )  # on noise; a wrong scale or axis gives about 0
