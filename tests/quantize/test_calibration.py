"""One pass over the images: shared, kept for the most recent graphs, resumed where it was interrupted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_graphs import N, build, rand
from roadworthy.data.preprocess import Preprocess
from roadworthy.data.samples import Sample, Samples
from roadworthy.detect.spec import DecodeSpec
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import to_qdq
from roadworthy.model.task import Task
from roadworthy.quantize import calibrate as module
from roadworthy.quantize.statistics import pack, unpack
from roadworthy.recipe import Calibration, CorrectBias, Fold, Quantize, Recipe, Smooth
from roadworthy.steps.calibration import KEPT

SIDE = 12


def network(factor: float = 1.0) -> Model:
    """A depthwise layer among them, whose channels are followed each."""
    weights = {"w": factor * rand(8, 3, 3, 3) / 5, "d": rand(8, 1, 3, 3, seed=1) / 3, "v": rand(6, 8, 1, 1, seed=2) / 8}
    nodes = [
        N("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
        N("Relu", ["a"], ["r"]),
        N("Conv", ["r", "d"], ["b"], name="depthwise", group=8, pads=[1, 1, 1, 1]),
        N("Relu", ["b"], ["s"]),
        N("Conv", ["s", "v"], ["c"], name="last"),
        N("GlobalAveragePool", ["c"], ["y"]),
    ]
    task = Task(Preprocess((SIDE, SIDE), "stretch", scale=1 / 255), DecodeSpec("raw"))
    return load(build(nodes, weights, (1, 3, SIDE, SIDE)), task)


class Watched:
    """Images that tell when they are opened; louder and louder, so that histograms have to grow."""

    def __init__(self, count: int) -> None:
        self.looks: list[int] = []
        self.samples = Samples([Sample(f"{k:03d}", load=lambda k=k: self._open(k), key=str(k)) for k in range(count)])  # type: ignore[misc]

    def _open(self, k: int) -> NDArray[np.uint8]:
        self.looks.append(k)
        return np.random.default_rng(k).integers(0, min(10 + 3 * k, 256), (SIDE, SIDE, 3)).astype(np.uint8)


class Drawer:
    """A shelf in memory."""

    def __init__(self) -> None:
        self.done: dict[str, Any] = {}
        self.half: dict[str, Any] = {}
        self.at: list[int] = []

    def get(self, key: str) -> Any:
        return self.done.get(key)

    def put(self, key: str, arrays: Mapping[str, NDArray]) -> None:
        self.done[key] = {k: v.copy() for k, v in arrays.items()}
        self.half.pop(key, None)

    def begun(self, key: str) -> Any:
        return self.half.get(key)

    def put_begun(self, key: str, arrays: Mapping[str, NDArray]) -> None:
        self.at.append(int(arrays["seen"]))
        self.half[key] = {k: v.copy() for k, v in arrays.items()}


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    Calibration.forget()
    yield
    Calibration.forget()


def same(one: Mapping[str, NDArray], other: Mapping[str, NDArray]) -> bool:
    return set(one) == set(other) and all(
        one[k].dtype == other[k].dtype and one[k].tobytes() == other[k].tobytes() for k in one
    )


def test_the_last_graphs_are_kept_and_no_more():
    images = Watched(5)
    models = [Fold()(network(1 + k), images.samples) for k in range(KEPT + 1)]
    for model in models[:KEPT] * 2:
        Calibration.of(model, images.samples, ())
    assert len(images.looks) == KEPT * 5  # each graph once, in whatever order they come
    Calibration.of(models[KEPT], images.samples, ())
    Calibration.of(models[2], images.samples, ())
    assert len(images.looks) == (KEPT + 1) * 5 and len(Calibration._kept) == KEPT
    Calibration.of(models[0], images.samples, ())  # the one that was not used for the longest time
    assert len(images.looks) == (KEPT + 2) * 5


def test_the_order_of_the_images_counts():
    """A histogram's bins follow from the first image, so a set in another order has other statistics."""
    images = Watched(6)
    turned = Samples(reversed(images.samples))
    assert turned.content_id == images.samples.content_id
    model = Fold()(network(), images.samples)
    one, other = (pack(Calibration.of(model, s, ())) for s in (images.samples, turned))
    assert not same(one, other)
    Calibration.forget()
    assert same(pack(Calibration.of(model, turned, ())), other)


def test_statistics_go_into_arrays_and_back_and_on():
    images = Watched(8)
    model = Fold()(network(), images.samples)
    table = Calibration.of(model, images.samples, ())
    assert any(s.channels is not None for s in table.values())
    back = unpack(pack(table))
    assert list(back) == list(table) and same(pack(back), pack(table))
    more = (9 * rand(1, 3, SIDE, SIDE, seed=7)).astype(np.float32)
    for t in (table, back):
        t["x"].update(more)
    assert same(pack(back), pack(table))


@pytest.mark.parametrize("stop", [5, 8, 11])
def test_an_interrupted_pass_goes_on_where_it_was(stop: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHECKPOINT_IMAGES", 4)
    whole = Watched(14)
    recipe = Recipe((Fold(), Quantize("native"), CorrectBias()), 14)
    wanted = to_qdq(recipe.apply(network(), whole.samples))
    statistics = pack(Calibration.of(Fold()(network(), whole.samples), whole.samples, ()))
    Calibration.forget()

    images, drawer = Watched(14), Drawer()
    model = Fold()(network(), images.samples)

    def interrupt(seen: int) -> None:
        if seen == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Calibration.kept_on(drawer):
        Calibration.of(model, images.samples, (), interrupt)
    kept = stop // 4 * 4
    assert drawer.at == list(range(4, stop + 1, 4)) and not drawer.done and len(drawer.half) == 1
    images.looks.clear()
    told: list[int] = []
    with Calibration.kept_on(drawer):
        found = Calibration.of(model, images.samples, (), told.append)
        assert same(pack(found), statistics)
        assert images.looks == list(range(kept, 14)) and told == list(range(kept + 1, 15))
        assert to_qdq(recipe.apply(network(), images.samples)) == wanted
    assert not drawer.half and len(drawer.done) == 1


def test_a_pass_is_handed_out_by_the_clock_as_well(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    drawer, images = Drawer(), Watched(3)
    with Calibration.kept_on(drawer):
        Calibration.of(Fold()(network(), images.samples), images.samples, ())
    assert drawer.at == [1, 2, 3]


def test_the_shelf_is_asked_before_the_images_and_only_inside():
    drawer, images = Drawer(), Watched(4)
    model = Fold()(network(), images.samples)
    with Calibration.kept_on(drawer):
        first = pack(Calibration.of(model, images.samples, ()))
    Calibration.forget()
    images.looks.clear()
    with Calibration.kept_on(drawer):
        assert same(pack(Calibration.of(model, images.samples, ())), first) and not images.looks
    Calibration.forget()
    assert same(pack(Calibration.of(model, images.samples, ())), first) and len(images.looks) == 4


def test_another_graph_image_or_preprocessing_is_another_entry():
    drawer, images = Drawer(), Watched(4)
    bright = network().with_task(Task(Preprocess((SIDE, SIDE), "stretch", scale=1.0), DecodeSpec("raw")))
    with Calibration.kept_on(drawer):
        for model, samples in (
            (network(), images.samples), (network(2), images.samples), (bright, images.samples),
            (network(), images.samples[:3]), (network(), Samples(reversed(images.samples))),
        ):  # fmt: skip
            Calibration.of(model, samples, ())
    assert len(drawer.done) == 5


def test_whatever_is_kept_in_float_one_pass_is_enough():
    """Values that share codes come apart when a layer stays in float; what was measured then must not depend on which
    candidate came first, so it is measured at once."""
    weights = {name: rand(4, 4, 3, 3, seed=k) / 5 for k, name in enumerate("abcd")}
    nodes = [
        N("Conv", ["x", "a"], ["p"], name="a", pads=[1, 1, 1, 1]),
        N("MaxPool", ["p"], ["q"], kernel_shape=[2, 2], strides=[2, 2]),
        N("Conv", ["q", "b"], ["r"], name="b", pads=[1, 1, 1, 1]),
        N("Concat", ["q", "r"], ["s"], axis=1),
        N("Slice", ["s", "from", "to", "along"], ["t"]),
        N("Conv", ["t", "c"], ["u"], name="c", pads=[1, 1, 1, 1]),
        N("Conv", ["u", "d"], ["y"], name="d"),
    ]
    numbers = {"from": np.array([2]), "to": np.array([6]), "along": np.array([1])}
    images = Watched(4)
    task = Task(Preprocess((SIDE, SIDE), "stretch", scale=1 / 255), DecodeSpec("raw"))
    weights["a"] = rand(4, 3, 3, 3)
    model = Fold()(load(build(nodes, {**weights, **numbers}, (1, 3, SIDE, SIDE)), task), images.samples)
    for target in ("ort", "openvino", "native"):
        for kept in ((), ("a",), ("b",), ("c",), ("a", "b"), ("b", "c", "d")):
            Quantize(target, "minmax", keep_float=kept)(model, images.samples)
    assert sorted(images.looks) == [0, 1, 2, 3]


def test_steps_that_rescale_channels_share_their_look_at_the_images():
    images = Watched(4)
    model = Fold()(network(), images.samples)
    half, more = Smooth(0.5)(model, images.samples), Smooth(0.75)(model, images.samples)
    assert sorted(images.looks) == [0, 1, 2, 3]
    assert half.float_bytes() != model.float_bytes() != more.float_bytes() != half.float_bytes()
    drawer = Drawer()
    Calibration.forget()
    with Calibration.kept_on(drawer):
        assert Smooth(0.5)(model, images.samples).float_bytes() == half.float_bytes()
        Calibration.forget()
        images.looks.clear()
        assert Smooth(0.5)(model, images.samples).float_bytes() == half.float_bytes() and not images.looks
