"""Whom the sentence names when a number stops being finite: the layer that made it of finite ones."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_graphs import N, build, rand
from roadworthy.model.model import Model, load

torch = pytest.importorskip("torch")

from roadworthy.run.torch import module_of  # noqa: E402
from roadworthy.train.diagnose import first_bad_layer  # noqa: E402

LARGE = {"w": np.full((4, 3, 1, 1), 100, np.float32), "v": rand(4, 4, 1, 1)}
STEM, EXP = N("Conv", ["x", "w"], ["a"], name="stem"), N("Exp", ["a"], ["e"], name="grow")


def network(*nodes: object, **weights: np.ndarray) -> Model:
    return load(build(list(nodes), {**LARGE, **weights}, (1, 3, 4, 4), outputs=["y"]))


def named(model: Model) -> str | None:
    return first_bad_layer(model, module_of(model), torch.full((1, 3, 4, 4), 10.0))


def test_a_node_without_weights_is_named_not_the_layer_behind_it():
    assert named(network(STEM, EXP, N("Conv", ["e", "v"], ["y"], name="tell"))) == "grow"


def test_a_node_at_the_very_end_is_named():
    assert named(network(STEM, N("Exp", ["a"], ["y"], name="grow"))) == "grow"
    assert named(network(STEM, N("Exp", ["a"], ["y"]))) == "Exp:y"


def test_a_layer_with_weights_is_named():
    heavy = np.full((4, 3, 1, 1), 3e38, np.float32)
    assert named(network(STEM, N("Relu", ["a"], ["y"], name="after"), w=heavy)) == "stem"


def test_a_mask_of_infinities_is_no_fault():
    seen = np.array([False, True, True, True]).reshape(4, 1, 1)
    nodes = N("Where", ["seen", "a", "none"], ["m"], name="mask"), N("Softmax", ["m"], ["y"], name="share", axis=1)
    assert named(network(STEM, *nodes, seen=seen, none=np.array(-np.inf, np.float32))) is None
