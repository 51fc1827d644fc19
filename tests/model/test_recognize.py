"""Recognition on heads built here in the manner of each family's exporter; what is not proven must not be claimed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime
import pytest

from roadworthy.detect.decode import classify, decode
from roadworthy.errors import InputError
from roadworthy.model.model import Model, load
from roadworthy.model.recognize import decode_for, recognize

HW = 128
RNG = np.random.default_rng(3)


class Net:
    """A network of one convolution per call, all reading the image at some stride."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def const(self, array: np.ndarray) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(oh.make_node(kind, list(inputs), [name], **attributes))
        return name

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))

    def conv(self, channels: int, stride: int) -> str:
        weight = self.const(RNG.normal(0, 0.02, (channels, 3, 1, 1)).astype(np.float32))
        cells = -(-HW // stride)
        pooled = self.op("Resize", "image", "", "", self.ints(1, 3, cells, cells), mode="nearest")
        return self.op("Conv", pooled, weight)

    def flat(self, value: str, channels: int) -> str:
        return self.op("Reshape", value, self.ints(1, channels, -1))

    def model(self, *outputs: str) -> Model:
        graph = oh.make_graph(
            self.nodes,
            "head",
            [oh.make_tensor_value_info("image", 1, [1, 3, HW, HW])],
            [oh.make_empty_tensor_value_info(o) for o in outputs],
            self.weights,
        )
        proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
        return load(proto)


def cells(strides: tuple[int, ...]) -> int:
    return sum((-(-HW // s)) ** 2 for s in strides)


def yolox(decoded: bool) -> Model:
    net, levels = Net(), []
    for stride in (8, 16, 32):
        parts = [net.conv(4, stride), net.op("Sigmoid", net.conv(1, stride)), net.op("Sigmoid", net.conv(6, stride))]
        levels.append(net.flat(net.op("Concat", *parts, axis=1), 11))
    rows = net.op("Transpose", net.op("Concat", *levels, axis=2), perm=[0, 2, 1])
    if not decoded:
        return net.model(rows)
    n = cells((8, 16, 32))
    box = net.op("Slice", rows, net.ints(0), net.ints(2), net.ints(2))
    moved = net.op("Add", box, net.const(RNG.integers(0, 16, (1, n, 2)).astype(np.float32)))
    size = net.op("Exp", net.op("Slice", rows, net.ints(2), net.ints(4), net.ints(2)))
    rest = net.op("Slice", rows, net.ints(4), net.ints(11), net.ints(2))
    return net.model(net.op("Concat", moved, size, rest, axis=2))


def yolov5() -> Model:
    net, levels = Net(), []
    for stride in (8, 16, 32):
        side = -(-HW // stride)
        head = net.op("Reshape", net.conv(33, stride), net.ints(1, 3, 11, side, side))
        head = net.op("Sigmoid", net.op("Transpose", head, perm=[0, 1, 3, 4, 2]))
        box = net.op("Slice", head, net.ints(0), net.ints(2), net.ints(4))
        box = net.op("Add", box, net.const(RNG.normal(0, 1, (1, 3, side, side, 2)).astype(np.float32)))
        rest = net.op("Slice", head, net.ints(2), net.ints(11), net.ints(4))
        levels.append(net.op("Reshape", net.op("Concat", box, rest, axis=4), net.ints(1, -1, 11)))
    return net.model(net.op("Concat", *levels, axis=1))


def yolov8(extra: int = 0) -> Model:
    """extra: further columns, as a pose model has."""
    net, strides = Net(), (8, 16, 32)
    n = cells(strides)
    boxes = net.op("Concat", *[net.flat(net.conv(4, s), 4) for s in strides], axis=2)
    boxes = net.op("Mul", boxes, net.const(np.full((1, 1, n), 8, np.float32)))
    scores = net.op("Sigmoid", net.op("Concat", *[net.flat(net.conv(6, s), 6) for s in strides], axis=2))
    parts = [boxes, scores]
    if extra:
        parts.append(net.op("Concat", *[net.flat(net.conv(extra, s), extra) for s in strides], axis=2))
    return net.model(net.op("Concat", *parts, axis=1))


def nanodet() -> Model:
    net, levels = Net(), []
    for stride in (8, 16, 32, 64):
        parts = [net.op("Sigmoid", net.conv(6, stride)), net.conv(32, stride)]
        levels.append(net.flat(net.op("Concat", *parts, axis=1), 38))
    return net.model(net.op("Transpose", net.op("Concat", *levels, axis=2), perm=[0, 2, 1]))


def picodet(sigmoid: bool = True) -> Model:
    net, outputs = Net(), []
    for stride in (32, 8, 64, 16):  # any order
        score = net.conv(6, stride)
        score = net.op("Sigmoid", score) if sigmoid else score
        outputs += [
            net.op("Transpose", net.flat(net.conv(32, stride), 32), perm=[0, 2, 1]),
            net.op("Transpose", net.flat(score, 6), perm=[0, 2, 1]),
        ]
    return net.model(*outputs)


def fastestdet() -> Model:
    net = Net()
    parts = [net.op("Sigmoid", net.conv(1, 16)), net.conv(4, 16), net.op("Softmax", net.conv(6, 16), axis=1)]
    return net.model(net.op("Concat", *parts, axis=1))


def classifier(probabilities: bool) -> Model:
    net = Net()
    out = net.op("Flatten", net.op("GlobalAveragePool", net.conv(10, 8)))
    return net.model(net.op("Softmax", out, axis=1) if probabilities else out)


def ssd() -> Model:
    net = Net()
    return net.model(net.op("Transpose", net.flat(net.conv(4, 8), 4), perm=[0, 2, 1]),
                     net.op("Transpose", net.flat(net.conv(7, 8), 7), perm=[0, 2, 1]))  # fmt: skip


def outputs_of(model: Model) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.float_bytes(), providers=["CPUExecutionProvider"])
    image = RNG.uniform(0, 1, model.input_shape).astype(np.float32)
    return dict(zip(model.output_names, session.run(None, {model.input_name: image}), strict=True))


CASES = {
    "yolox": (yolox(False), {"kind": "yolox", "decoded": False, "strides": (8, 16, 32)}),
    "yolox decoded": (yolox(True), {"kind": "yolox", "decoded": True, "strides": (8, 16, 32)}),
    "yolov5": (yolov5(), {"kind": "yolov5", "decoded": True, "strides": (8, 16, 32)}),
    "yolov8": (yolov8(), {"kind": "yolov8", "decoded": True, "strides": (8, 16, 32)}),
    "nanodet plus": (nanodet(), {"kind": "nanodet_plus", "reg_max": 7, "strides": (8, 16, 32, 64)}),
    "picodet": (picodet(), {"kind": "dfl", "reg_max": 7, "strides": (8, 16, 32, 64), "scores_are_logits": False}),
    "picodet logits": (picodet(False), {"kind": "dfl", "scores_are_logits": True}),
    "fastestdet": (fastestdet(), {"kind": "fastestdet", "strides": (16,)}),
}


@pytest.mark.parametrize("name", CASES)
def test_family_is_recognized_and_decodes(name: str) -> None:
    model, expected = CASES[name]
    guess = recognize(model)
    assert guess is not None
    assert {k: getattr(guess.decode, k) for k in expected} == expected
    assert guess.decode.num_classes == 6
    assert guess.decode.input_hw == (HW, HW)
    boxes, scores = decode(outputs_of(model), guess.decode)
    assert boxes.shape[1] == 4 and scores.shape == (len(boxes), 6)


@pytest.mark.parametrize("probabilities", [False, True])
def test_classifier(probabilities: bool) -> None:
    model = classifier(probabilities)
    guess = recognize(model)
    assert guess is not None
    assert (guess.decode.kind, guess.decode.num_classes) == ("classify", 10)
    assert guess.decode.scores_are_logits is not probabilities
    assert classify(outputs_of(model), guess.decode).sum() == pytest.approx(1, abs=1e-5)


def test_pose_head_is_not_taken_for_a_detector() -> None:
    assert recognize(yolov8(extra=51)) is None


def test_boxes_and_scores_alone_are_asked_about() -> None:
    assert recognize(ssd()) is None


def test_segmentation_map_is_not_claimed() -> None:
    net = Net()
    assert recognize(net.model(net.conv(6, 1))) is None


def test_a_named_family_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"do not fit --task fastestdet"):
        decode_for("fastestdet", yolov8(), None)


def test_ssd_when_named() -> None:
    spec = decode_for("ssd", ssd(), 6)
    assert (spec.num_classes, spec.background) == (6, 0)
    boxes, scores = decode(outputs_of(ssd()), spec)
    assert boxes.shape == (256, 4) and scores.shape == (256, 6)
