"""Random small convolutional networks with the joints that matter to placement: branches, merges, moves, heads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from onnx_graphs import N, build
from roadworthy.model.model import Model

ACTIVATIONS = ("none", "relu", "relu6", "leaky", "silu", "hardswish", "sigmoid", "prelu", "mish")
MOVES = ("maxpool", "split", "slice", "up", "avgpool", "relu", "transpose", "residual", "concat", "gap", "scale")
Choose = Callable[[int], int]
"""choose(n) -> a number below n: hypothesis' or a random generator's."""


class Builder:
    def __init__(self, choose: Choose, seed: int) -> None:
        self.choose = choose
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"x": (1, 3, 8, 8)}

    def name(self) -> str:
        return f"v{len(self.shapes)}"

    def add(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: object) -> str:
        out = self.name()
        self.nodes.append(N(op, inputs, [out], **attributes))
        self.shapes[out] = shape
        return out

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = (scale * self.rng.normal(size=shape)).astype(np.float32)
        return name

    def constant(self, value: object, dtype: type = np.float32) -> str:
        name = f"k{len(self.weights)}"
        self.weights[name] = np.asarray(value, dtype)
        return name

    def pick(self) -> str:
        maps = [n for n, s in self.shapes.items() if len(s) == 4]
        # Late values more often, so that networks get deep.
        return maps[max(self.choose(len(maps)), self.choose(len(maps)))]

    def layer(self, source: str) -> str:
        _, c, h, w = self.shapes[source]
        kind = self.choose(5)
        if kind == 4:
            out = 2 + self.choose(3)
            weight = self.weight(c, out, 2, 2, scale=c**-0.5)
            value = self.add(
                "ConvTranspose", [source, weight, self.weight(out)], (1, out, 2 * h, 2 * w), strides=[2, 2]
            )
        else:
            kernel = (1, 3, 3, 1)[kind]
            group = c if kind == 2 else 1
            out = c if kind in (2, 3) else 2 + self.choose(5)
            shared = [n for n, a in self.weights.items() if a.shape == (out, c // group, kernel, kernel)]
            fan = (c // group * kernel**2) ** -0.5
            reuse = shared and self.choose(3) == 0
            weight = shared[0] if reuse else self.weight(out, c // group, kernel, kernel, scale=fan)
            inputs = [source, weight, *([self.weight(out)] if self.choose(3) else [])]
            pads = [kernel // 2] * 4
            value = self.add("Conv", inputs, (1, out, h, w), pads=pads, group=group)
        return self.activation(value, ACTIVATIONS[self.choose(len(ACTIVATIONS))])

    def activation(self, c: str, kind: str) -> str:
        shape = self.shapes[c]
        if kind == "relu":
            return self.add("Relu", [c], shape)
        if kind == "relu6":
            return self.add("Clip", [c, self.constant(0.0), self.constant(6.0)], shape)
        if kind == "leaky":
            return self.add("LeakyRelu", [c], shape, alpha=0.1)
        if kind == "prelu":
            return self.add("PRelu", [c, self.weight(shape[1], 1, 1)], shape)
        if kind == "sigmoid":
            return self.add("Sigmoid", [c], shape)
        if kind == "silu":
            return self.add("Mul", [c, self.add("Sigmoid", [c], shape)], shape)
        if kind == "mish":
            return self.add("Mul", [c, self.add("Tanh", [self.add("Softplus", [c], shape)], shape)], shape)
        if kind == "hardswish":
            gate = self.add("HardSigmoid", [c], shape, alpha=1 / 6, beta=0.5)
            return self.add("Mul", [c, gate], shape)
        return c

    def move(self, source: str) -> str:
        shape = self.shapes[source]
        _, c, h, w = shape
        kind = MOVES[self.choose(len(MOVES))]
        others = [n for n, s in self.shapes.items() if len(s) == 4 and s == shape and n != source]
        if kind == "maxpool":
            return self.add("MaxPool", [source], shape, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        if kind == "avgpool":
            return self.add("AveragePool", [source], shape, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        if kind == "gap":
            return self.add("GlobalAveragePool", [source], (1, c, 1, 1))
        if kind == "relu":
            return self.add("Relu", [source], shape)
        if kind == "scale":
            return self.add("Mul", [source, self.constant(1.5)], shape)
        if kind == "transpose":
            return self.add("Transpose", [source], (1, c, w, h), perm=[0, 1, 3, 2])
        if kind == "up" and h <= 8:
            mode = ("nearest", "linear", "cubic")[self.choose(3)]
            scales = self.constant([1, 1, 2, 2])
            return self.add("Resize", [source, "", scales], (1, c, 2 * h, 2 * w), mode=mode)
        if kind == "slice" and c > 1:
            ends = [self.constant(v, np.int64) for v in ([0], [c - 1], [1])]
            return self.add("Slice", [source, *ends], (1, c - 1, h, w))
        if kind == "split" and c > 1:
            sizes = self.constant([1, c - 1], np.int64)
            first, second = self.name(), self.name() + "b"
            self.nodes.append(N("Split", [source, sizes], [first, second], axis=1))
            self.shapes[first], self.shapes[second] = (1, 1, h, w), (1, c - 1, h, w)
            return second
        if kind == "residual" and others:
            total = self.add("Add", [source, others[self.choose(len(others))]], shape)
            return self.add("Relu", [total], shape) if self.choose(2) else total
        if kind == "concat":
            fit = [n for n, s in self.shapes.items() if len(s) == 4 and s[2:] == shape[2:]]
            other = fit[self.choose(len(fit))]
            return self.add("Concat", [source, other], (1, c + self.shapes[other][1], h, w), axis=1)
        return source

    def head(self, source: str) -> str:
        shape = self.shapes[source]
        size = int(np.prod(shape))
        flat = self.add("Reshape", [source, self.constant([1, -1], np.int64)], (1, size))
        kind = self.choose(3)
        if kind == 0:
            return flat
        if kind == 1:
            return self.add("Gemm", [flat, self.weight(5, size, scale=size**-0.5), self.weight(5)], (1, 5), transB=1)
        return self.add(
            "Add", [self.add("MatMul", [flat, self.weight(size, 5, scale=size**-0.5)], (1, 5)), self.weight(5)], (1, 5)
        )


def random_network(choose: Choose, seed: int = 0) -> onnx.ModelProto:
    """A network of two to about twelve layers on a 1x3x8x8 input, with one to three outputs."""
    made = Builder(choose, seed)
    value = made.layer("x")
    for _ in range(1 + choose(7)):
        value = made.layer(made.pick()) if choose(2) else made.move(made.pick())
    outputs = [made.head(value)]
    for _ in range(choose(3)):
        extra = made.pick()
        if extra != "x" and extra not in outputs:
            outputs.append(extra)
    return build(made.nodes, made.weights, outputs=outputs)


def random_int8_model(seed: int | Choose, exact: bool = True) -> Model:
    """A random network with encodings; see `random_int8`."""
    import random_int8

    return random_int8.random_int8_model(seed, exact)
