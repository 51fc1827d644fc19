"""Random small networks with encodings, for runners that have to equal the reference: `random_int8_model(seed)`.

Everything that docs/engine.md knows turns up: convolutions dense, strided, dilated, grouped and depthwise, each kind of
epilogue, sums, products with gates, joins with equal and different encodings, shuffles, pools, resizes, matrices, and
heads in float. Channel counts and sizes are ragged. Ranges come from running the float network, narrowed or widened at
random, so that codes are spread and some saturate.
"""

from __future__ import annotations

import numpy as np

from onnx_graphs import N, build
from random_encodings import Encoder
from random_encodings import feeds as feeds
from random_graphs import Builder, Choose
from roadworthy.model.model import Model, load

CHANNELS = (1, 3, 5, 8, 16, 17, 33)
ACTIVATIONS = ("none", "relu", "relu6", "leaky", "silu", "hardswish", "sigmoid", "mish", "tanh", "elu", "gelu", "hs")
KERNELS = ((1, 1), (3, 3), (1, 1), (3, 3), (5, 5), (2, 2), (1, 3))
MOVES = (
    "conv", "conv", "conv", "depthwise", "depthwise", "add", "addrelu", "gate", "concat", "concat", "slice", "crop",
    "split", "shuffle", "gather", "maxpool", "avgpool", "nearest", "linear", "depth", "pad", "function",
)  # fmt: skip


class Network(Builder):
    """A Builder of greater variety, and of ragged sizes."""

    def __init__(self, choose: Choose, seed: int) -> None:
        super().__init__(choose, seed)
        sides = [4 + choose(12), 4 + choose(12)]
        self.shapes = {"x": (1, (3, 1, 3, 4)[choose(4)], *sides)}

    def one_of(self, items: tuple) -> object:
        return items[self.choose(len(items))]

    def chance(self, percent: int) -> bool:
        return self.choose(100) < percent

    def act(self, c: str) -> str:
        kind, shape = str(self.one_of(ACTIVATIONS)), self.shapes[c]
        if kind == "tanh":
            return self.add("Tanh", [c], shape)
        if kind == "hardswish" and self.chance(50):  # from its parts
            three, six, zero = (self.constant(v) for v in (3.0, 6.0, 0.0))
            clipped = self.add("Clip", [self.add("Add", [c, three], shape), zero, six], shape)
            return self.add("Div", [self.add("Mul", [c, clipped], shape), six], shape)
        if kind == "elu":
            return self.add("Elu", [c], shape, alpha=0.7)
        if kind == "gelu":
            return self.add("Gelu", [c], shape, approximate=self.one_of(("none", "tanh")))
        if kind == "hs":
            return self.add("HardSigmoid", [c], shape, alpha=0.3, beta=0.4)
        return self.activation(c, kind)

    def focus(self) -> str:
        """Four samplings of the image side by side, as some detectors begin."""
        _, c, h, w = self.shapes["x"]
        parts = []
        for top, left in ((0, 0), (1, 0), (0, 1), (1, 1)):
            where = [self.constant(v, np.int64) for v in ([top, left], [h, w], [2, 3], [2, 2])]
            parts.append(self.add("Slice", ["x", *where], (1, c, (h - top + 1) // 2, (w - left + 1) // 2)))
        return self.add("Concat", parts, (1, 4 * c, h // 2, w // 2), axis=1)

    def conv(self, source: str) -> str:
        c = self.shapes[source][1]
        groups = 2 if c % 2 == 0 and c > 2 and self.chance(25) else 1
        out = int(self.one_of(CHANNELS)) * groups  # type: ignore[call-overload]
        return self.windows(source, out, groups, self.one_of(KERNELS))  # type: ignore[arg-type]

    def depthwise(self, source: str) -> str:
        c = self.shapes[source][1]
        return self.windows(source, c, c, self.one_of(((3, 3), (3, 3), (5, 5), (2, 3))))  # type: ignore[arg-type]

    def windows(self, source: str, out: int, groups: int, kernel: tuple[int, int]) -> str:
        _, c, h, w = self.shapes[source]
        strides = [1 + self.chance(25), 1 + self.chance(25)]
        dilations = [1 + self.chance(15), 1 + self.chance(15)]
        pads = [k // 2 for k in kernel] * 2 if self.chance(70) else [self.choose(k + 1) for k in (*kernel, *kernel)]
        sides = [
            (n + pads[a] + pads[a + 2] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1
            for a, n in enumerate((h, w))
        ]
        if min(sides) < 1:
            return source
        fan = (c // groups * kernel[0] * kernel[1]) ** -0.5
        weight = self.weight(out, c // groups, *kernel, scale=fan)
        inputs = [source, weight, *([self.weight(out, scale=0.5)] if self.chance(75) else [])]
        made = self.add("Conv", inputs, (1, out, *sides), strides=strides, pads=pads, dilations=dilations, group=groups)
        return self.act(made)

    def step(self, source: str) -> str:
        kind = str(self.one_of(MOVES))
        shape = self.shapes[source]
        _, c, h, w = shape
        alike = [n for n, s in self.shapes.items() if len(s) == 4 and s == shape and n not in self.hidden()]
        if kind in ("conv", "depthwise"):
            return getattr(self, kind)(source)
        if kind == "add":
            return self.add("Add", [source, str(self.one_of(tuple(alike)))], shape)
        if kind == "addrelu":
            total = self.add("Add", [source, str(self.one_of(tuple(alike)))], shape)
            return self.activation(total, str(self.one_of(("relu", "relu6"))))
        if kind == "gate":
            pooled = self.add("GlobalAveragePool", [source], (1, c, 1, 1))
            weight = self.weight(c, c, 1, 1, scale=c**-0.5)
            logits = self.add("Conv", [pooled, weight, self.weight(c)], (1, c, 1, 1))
            scale = self.activation(logits, "sigmoid")
            return self.add("Mul", [source, scale], shape)
        if kind == "concat":
            fit = [n for n, s in self.shapes.items() if len(s) == 4 and s[2:] == (h, w) and n not in self.hidden()]
            parts = [source, *(str(self.one_of(tuple(fit))) for _ in range(1 + self.choose(2)))]
            total = sum(self.shapes[p][1] for p in parts)
            return self.add("Concat", parts, (1, total, h, w), axis=1) if total < 80 else source
        if kind == "slice" and c > 1:
            step = 1 + self.chance(30)
            begin = self.choose(c)
            ends = [self.constant([v], np.int64) for v in (begin, c, 1, step)]
            return self.add("Slice", [source, *ends], (1, -(-(c - begin) // step), h, w))
        if kind == "crop" and min(h, w) > 2:
            ends = [self.constant(v, np.int64) for v in ([0, 1], [h - 1, w], [2, 3], [2, 1])]
            return self.add("Slice", [source, *ends], (1, c, h // 2, w - 1))
        if kind == "split" and c > 2:
            first = 1 + self.choose(c - 1)
            sizes = self.constant([first, c - first], np.int64)
            names = self.name(), self.name() + "b"
            self.nodes.append(N("Split", [source, sizes], names, axis=1))
            for name, part in zip(names, (first, c - first)):
                self.shapes[name] = (1, part, h, w)
            return names[self.choose(2)]
        if kind == "shuffle" and c % 2 == 0:
            apart = self.add("Reshape", [source, self.constant([1, 2, c // 2, h, w], np.int64)], (1, 2, c // 2, h, w))
            turned = self.add("Transpose", [apart], (1, c // 2, 2, h, w), perm=[0, 2, 1, 3, 4])
            return self.add("Reshape", [turned, self.constant([1, c, h, w], np.int64)], shape)
        if kind == "gather":
            picked = [self.choose(c) for _ in range(1 + self.choose(c))]
            return self.add("Gather", [source, self.constant(picked, np.int64)], (1, len(picked), h, w), axis=1)
        if kind in ("maxpool", "avgpool"):
            return self.pool(source, kind)
        if kind in ("nearest", "linear") and h * w < 300:
            modes = ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")
            sides = [n + 1 + self.choose(n) for n in (h, w)] if self.chance(40) else [2 * h, 2 * w]
            sizes = self.constant([1, c, *sides], np.int64)
            more = {"nearest_mode": self.one_of(("floor", "round_prefer_floor", "round_prefer_ceil"))}
            how = {"mode": kind, "coordinate_transformation_mode": self.one_of(modes)}
            return self.add(
                "Resize", [source, "", "", sizes], (1, c, *sides), **how, **(more if kind == "nearest" else {})
            )
        if kind == "depth" and c % 4 == 0:
            how = {"blocksize": 2, "mode": self.one_of(("DCR", "CRD"))}
            return self.add("DepthToSpace", [source], (1, c // 4, 2 * h, 2 * w), **how)
        if kind == "depth" and h % 2 == 0 and w % 2 == 0:
            return self.add("SpaceToDepth", [source], (1, 4 * c, h // 2, w // 2), blocksize=2)
        if kind == "pad":
            amounts = [self.choose(3) for _ in range(4)]
            where = self.constant([0, 0, *amounts[:2], 0, 0, *amounts[2:]], np.int64)
            sides = (h + amounts[0] + amounts[2], w + amounts[1] + amounts[3])
            return self.add("Pad", [source, where], (1, c, *sides))
        if kind == "function":
            return self.act(source)
        return source

    def pool(self, source: str, kind: str) -> str:
        _, c, h, w = self.shapes[source]
        k = int(self.one_of((2, 3, 5)))  # type: ignore[call-overload]
        if min(h, w) < k:
            return source
        ceil, stride = int(self.chance(30)), 1 + self.choose(2)
        pad = k // 2 if self.chance(60) else 0
        free = [n + 2 * pad - k for n in (h, w)]
        sides = [(-(-f // stride) if ceil else f // stride) + 1 for f in free]
        # A window that would start behind the image is left out.
        sides = [count - (bool(ceil) and (count - 1) * stride >= n + pad) for count, n in zip(sides, (h, w))]
        how: dict = {"kernel_shape": [k, k], "strides": [stride] * 2, "pads": [pad] * 4, "ceil_mode": ceil}
        if kind == "maxpool":
            return self.add("MaxPool", [source], (1, c, *sides), **how)
        # Windows that hang over the padding count fewer positions, which the plan cannot say for padding that counts.
        how["count_include_pad"] = int(not ceil and self.chance(50))
        return self.add("AveragePool", [source], (1, c, *sides), **how)

    def hidden(self) -> set[str]:
        """Values in the middle of an activation, which nothing else should read."""
        inside = {o for n in self.nodes if n.op_type in ("Conv", "Softplus") for o in n.output}
        read = {i for n in self.nodes for i in n.input}
        gates = {o for n in self.nodes if n.op_type in ("Sigmoid", "HardSigmoid", "Tanh") for o in n.output}
        return (inside & read) | (gates & read)

    def head(self, source: str) -> str:
        _, c, h, w = self.shapes[source]
        size = c * h * w
        kind = self.choose(5)
        if kind == 4:  # every pixel a row of a matrix, as transformers have it
            flat = self.add("Reshape", [source, self.constant([1, c, -1], np.int64)], (1, c, h * w))
            rows = self.add("Transpose", [flat], (1, h * w, c), perm=[0, 2, 1])
            out = self.add("MatMul", [rows, self.weight(c, 6, scale=c**-0.5)], (1, h * w, 6))
            return self.act(self.add("Add", [out, self.weight(6)], (1, h * w, 6)) if self.chance(70) else out)
        if kind == 0 and size < 4000:
            flat = self.add("Flatten", [source], (1, size))
            out = self.add("Gemm", [flat, self.weight(7, size, scale=size**-0.5), self.weight(7)], (1, 7), transB=1)
            return self.add("Softmax", [out], (1, 7), axis=-1) if self.chance(50) else out
        out = 5 + self.choose(4)
        raw = self.add("Conv", [source, self.weight(out, c, 1, 1, scale=c**-0.5), self.weight(out)], (1, out, h, w))
        if kind == 1:
            return self.add("Sigmoid", [raw], (1, out, h, w))
        flat = self.add("Reshape", [raw, self.constant([1, out, -1], np.int64)], (1, out, h * w))
        rows = self.add("Transpose", [flat], (1, h * w, out), perm=[0, 2, 1])
        if kind == 2:
            return self.add("Softmax", [rows], (1, h * w, out), axis=-1)
        # Boxes from offsets, as a detector decodes them.
        shape = (1, h * w, out)
        moved = self.add(self.one_of(("Add", "Sub", "Max", "Min")), [rows, self.weight(h * w, out)], shape)  # type: ignore[arg-type]
        sized = self.add("Exp", [self.add("Mul", [rows, self.weight(h * w, 1, scale=0.3)], shape)], shape)
        scaled = self.add("Div", [moved, sized], shape) if self.chance(30) else self.add("Add", [moved, sized], shape)
        return self.add("Concat", [scaled, rows], (1, h * w, 2 * out), axis=-1)


def random_int8_model(seed: int | Choose, exact: bool = True) -> Model:
    """A model of about two to fourteen steps, quantized.

    seed: a number, or hypothesis' way to choose a number below n.
    exact: every result follows from docs/engine.md to the bit; else some layers and averages compute in float, where
    sums may be taken in any order, and some weights are only stored as integers.
    """
    if isinstance(seed, int):
        rng = np.random.default_rng(seed)
        choose: Choose = lambda n: int(rng.integers(n))  # noqa: E731
    else:
        choose = seed
    made = Network(choose, choose(1000))
    even = made.shapes["x"][2] % 2 == 0 and made.shapes["x"][3] % 2 == 0
    value = made.conv(made.focus() if even and choose(4) == 0 else "x")
    for _ in range(1 + choose(11)):
        free = [n for n, s in made.shapes.items() if len(s) == 4 and n not in made.hidden()]
        value = made.step(value if choose(3) else free[choose(len(free))])
    outputs = list(dict.fromkeys([made.head(value), *([value] if choose(4) == 0 and value != "x" else [])]))
    model = load(build(made.nodes, made.weights, made.shapes["x"], outputs=outputs, opset=20, ir=9))
    return Encoder(model, choose, exact).encoded()
