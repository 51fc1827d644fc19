"""Every float operator of the reference against ONNX Runtime.

Bounds. Moves, comparisons and single operations are equal. Functions: both sides are within four units in the last
place of results up to the size of the operands, 2^-21 of the larger of 1, |x| and |y|. Sums of K products: the
reference rounds once, ONNX Runtime up to K times, each by 2^-24 of a partial sum that is at most the sum of magnitudes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnx_graphs import N, build, ort, rand
from roadworthy.errors import InputError, UnsupportedError
from roadworthy.model.model import load
from roadworthy.run.ort import OrtRunner
from roadworthy.run.reference import ReferenceRunner

IMAGE = (1, 4, 9, 7)


def i64(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def resize(mode: str, how: str, to: tuple[int, int] | None, scales: tuple[float, float] = (1, 1), **more: Any) -> tuple:
    size, scale = (["", "n"], {"n": i64(1, 4, *to)}) if to else (["n"], {"n": np.array([1, 1, *scales], np.float32)})
    node = N("Resize", ["x", "", *size], ["y"], mode=mode, coordinate_transformation_mode=how, **more)
    return [node], scale


EQUAL: dict[str, tuple] = {
    "add": ([N("Add", ["x", "k"], ["y"])], {"k": rand(4, 1, 1)}),
    "add a number": ([N("Add", ["x", "k"], ["y"])], {"k": np.float32(0.3)}),
    "number minus": ([N("Sub", ["k", "x"], ["y"])], {"k": np.float32(0.3)}),
    "sub": ([N("Sub", ["x", "k"], ["y"])], {"k": rand(1, 4, 9, 7)}),
    "mul": ([N("Mul", ["x", "k"], ["y"])], {"k": rand(7)}),
    "div": ([N("Div", ["x", "k"], ["y"])], {"k": rand(7)}),
    "max of three": ([N("Max", ["x", "k", "l"], ["y"])], {"k": rand(7), "l": rand(9, 1)}),
    "min": ([N("Min", ["x", "k"], ["y"])], {"k": rand(7)}),
    "relu": ([N("Relu", ["x"], ["y"])], {}),
    "clip": ([N("Clip", ["x", "a", "b"], ["y"])], {"a": np.float32(-0.5), "b": np.float32(0.7)}),
    "clip below": ([N("Clip", ["x", "a"], ["y"])], {"a": np.float32(-0.5)}),
    "leaky": ([N("LeakyRelu", ["x"], ["y"], alpha=0.1)], {}),
    "prelu": ([N("PRelu", ["x", "k"], ["y"])], {"k": rand(4, 1, 1)}),
    "neg": ([N("Neg", ["x"], ["y"])], {}),
    "abs": ([N("Abs", ["x"], ["y"])], {}),
    "floor": ([N("Floor", ["x"], ["y"])], {}),
    "ceil": ([N("Ceil", ["x"], ["y"])], {}),
    "round": ([N("Round", ["x"], ["y"])], {}),
    "square": ([N("Mul", ["x", "x"], ["y"])], {}),
    "reshape": ([N("Reshape", ["x", "k"], ["y"])], {"k": i64(0, 2, -1)}),
    "transpose": ([N("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1])], {}),
    "flatten": ([N("Flatten", ["x"], ["y"], axis=2)], {}),
    "flatten from behind": ([N("Flatten", ["x"], ["y"], axis=-1)], {}),
    "squeeze": ([N("Squeeze", ["x", "k"], ["y"])], {"k": i64(0)}),
    "unsqueeze": ([N("Unsqueeze", ["x", "k"], ["y"])], {"k": i64(-1, 1)}),
    "slice": ([N("Slice", ["x", *"abcd"], ["y"])], {"a": i64(1, -5), "b": i64(4, 99), "c": i64(1, -1), "d": i64(2, 3)}),
    "slice backwards": (
        [N("Slice", ["x", *"abcd"], ["y"])], {"a": i64(-1), "b": i64(-1000), "c": i64(2), "d": i64(-2)},
    ),
    "split": ([N("Split", ["x", "k"], ["y", "z"], axis=1)], {"k": i64(1, 3)}),
    "split evenly": ([N("Split", ["x"], ["y", "z"], axis=-1, num_outputs=2)], {}),
    "gather": ([N("Gather", ["x", "k"], ["y"], axis=1)], {"k": i64(3, -1, 0)}),
    "gather one": ([N("Gather", ["x", "k"], ["y"], axis=2)], {"k": np.int64(-2)}),
    "pad": ([N("Pad", ["x", "k", "v"], ["y"])], {"k": i64(0, 1, 2, 3, 0, 0, 1, -2), "v": np.float32(0.5)}),
    "pad along axes": ([N("Pad", ["x", "k", "", "a"], ["y"])], {"k": i64(1, 2, 3, 4), "a": i64(3, -2)}),
    "pad reflect": ([N("Pad", ["x", "k"], ["y"], mode="reflect")], {"k": i64(0, 0, 2, 3, 0, 0, 1, 2)}),
    "pad edge": ([N("Pad", ["x", "k"], ["y"], mode="edge")], {"k": i64(0, 0, 2, 3, 0, 0, 1, 2)}),
    "depth to space": ([N("DepthToSpace", ["x"], ["y"], blocksize=2)], {}),
    "depth to space CRD": ([N("DepthToSpace", ["x"], ["y"], blocksize=2, mode="CRD")], {}),
    "space to depth": ([N("SpaceToDepth", ["x"], ["y"], blocksize=3)], {}, (1, 4, 9, 6)),
    "concat": ([N("Concat", ["x", "k"], ["y"], axis=-3)], {"k": rand(1, 2, 9, 7)}),
    "expand": ([N("Expand", ["x", "k"], ["y"])], {"k": i64(2, 1, 1, 1)}),
    "tile": ([N("Tile", ["x", "k"], ["y"])], {"k": i64(1, 2, 1, 3)}),
    "max pool": ([N("MaxPool", ["x"], ["y"], kernel_shape=[3, 2], pads=[1, 0, 1, 1], strides=[2, 1])], {}),
    "max pool, ceil": ([N("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], {}),
    "max pool, last window gone": (
        [N("MaxPool", ["x"], ["y"], kernel_shape=[1, 1], strides=[2, 3], pads=[0, 0, 0, 0], ceil_mode=1)], {},
    ),
    "max pool, same": ([N("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")], {}),
    "max pool, dilated": ([N("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], dilations=[2, 2])], {}),
    "global max": ([N("GlobalMaxPool", ["x"], ["y"])], {}),
    "reduce max": ([N("ReduceMax", ["x", "k"], ["y"], keepdims=0)], {"k": i64(1)}),
    "nearest, scales": resize("nearest", "asymmetric", None, (2, 3), nearest_mode="floor"),
    "nearest, odd": resize("nearest", "half_pixel", (13, 5)),
    "nearest, ceil": resize("nearest", "half_pixel", (13, 16), nearest_mode="round_prefer_ceil"),
    "nearest, corners": resize("nearest", "align_corners", (13, 16), nearest_mode="ceil"),
    "nearest, pytorch": resize("nearest", "pytorch_half_pixel", (1, 14)),
    "nearest, broken scales": resize("nearest", "asymmetric", None, (1.7, 0.6), nearest_mode="floor"),
}  # fmt: skip

FUNCTIONS: dict[str, tuple] = {
    "sigmoid": ([N("Sigmoid", ["x"], ["y"])], {}),
    "hard sigmoid": ([N("HardSigmoid", ["x"], ["y"], alpha=0.3, beta=0.4)], {}),
    "hard swish": ([N("HardSwish", ["x"], ["y"])], {}),
    "tanh": ([N("Tanh", ["x"], ["y"])], {}),
    "exp": ([N("Exp", ["x"], ["y"])], {}),
    "log": ([N("Abs", ["x"], ["a"]), N("Log", ["a"], ["y"])], {}),
    "sqrt": ([N("Abs", ["x"], ["a"]), N("Sqrt", ["a"], ["y"])], {}),
    "power": ([N("Abs", ["x"], ["a"]), N("Pow", ["a", "k"], ["y"])], {"k": np.float32(1.7)}),
    "cube": ([N("Pow", ["x", "k"], ["y"])], {"k": np.float32(3)}),
    "power of two": ([N("Pow", ["x", "k"], ["y"])], {"k": np.float32(2)}),
    "erf": ([N("Erf", ["x"], ["y"])], {}),
    "softplus": ([N("Softplus", ["x"], ["y"])], {}),
    "elu": ([N("Elu", ["x"], ["y"], alpha=0.7)], {}),
    "gelu": ([N("Gelu", ["x"], ["y"])], {}),
    "gelu by tanh": ([N("Gelu", ["x"], ["y"], approximate="tanh")], {}),
    "mish": ([N("Mish", ["x"], ["y"])], {}),
    "softmax": ([N("Softmax", ["x"], ["y"], axis=1)], {}),
    "softmax of many": ([N("Reshape", ["x", "k"], ["a"]), N("Softmax", ["a"], ["y"])], {"k": i64(1, -1)}),
    "divided by a number": ([N("Div", ["x", "k"], ["y"])], {"k": np.float32(3)}),
    "one over": (
        [N("Abs", ["x"], ["a"]), N("Add", ["a", "k"], ["b"]), N("Div", ["k", "b"], ["y"])], {"k": np.float32(1)},
    ),
    "average pool": ([N("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 0, 1], strides=[2, 1])], {}),
    "average pool, counting": (
        [N("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)], {},
    ),
    "average pool, ceil": (
        [N("AveragePool", ["x"], ["y"], kernel_shape=[2, 4], strides=[2, 3], ceil_mode=1)], {},
    ),
    "global average": ([N("GlobalAveragePool", ["x"], ["y"])], {}),
    "mean": ([N("ReduceMean", ["x", "k"], ["y"], keepdims=0)], {"k": i64(-1, 2)}),
    "sum": ([N("ReduceSum", ["x", "k"], ["y"])], {"k": i64(1)}),
    "linear, twice": resize("linear", "half_pixel", (18, 14)),
    "linear, corners": resize("linear", "align_corners", (15, 11)),
    "linear, asymmetric": resize("linear", "asymmetric", (5, 20)),
    "linear, pytorch": resize("linear", "pytorch_half_pixel", (1, 20)),
    "linear, scales": resize("linear", "half_pixel", None, (2.5, 1.3)),
    "batch normalization": (
        [N("BatchNormalization", ["x", *"abcd"], ["y"])],
        {"a": rand(4), "b": rand(4, seed=1), "c": rand(4, seed=2), "d": 1 + np.abs(rand(4, seed=3))},
    ),
}  # fmt: skip

SUMS: dict[str, tuple] = {
    "conv": (
        [N("Conv", ["x", "w", "b"], ["y"], pads=[1, 2, 0, 1], strides=[2, 1])], {"w": rand(5, 4, 3, 3), "b": rand(5)},
    ),
    "conv, dilated": ([N("Conv", ["x", "w"], ["y"], dilations=[2, 3], pads=[2, 3, 2, 3])], {"w": rand(5, 4, 3, 3)}),
    "conv, groups": ([N("Conv", ["x", "w"], ["y"], group=2)], {"w": rand(6, 2, 3, 3)}),
    "conv, depthwise": ([N("Conv", ["x", "w"], ["y"], group=4)], {"w": rand(4, 1, 3, 2)}),
    "conv, depth multiplied": ([N("Conv", ["x", "w"], ["y"], group=4)], {"w": rand(8, 1, 3, 2)}),
    "conv, same upper": (
        [N("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])], {"w": rand(5, 4, 3, 4)},
    ),
    "conv, same lower": (
        [N("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2, 2])], {"w": rand(5, 4, 3, 4)},
    ),
    "transposed": ([N("ConvTranspose", ["x", "w", "b"], ["y"], strides=[2, 2])], {"w": rand(4, 3, 2, 2), "b": rand(3)}),
    "transposed, padded": (
        [N("ConvTranspose", ["x", "w"], ["y"], strides=[2, 3], pads=[1, 0, 1, 2], output_padding=[1, 0])],
        {"w": rand(4, 3, 4, 3)},
    ),
    "transposed, groups": (
        [N("ConvTranspose", ["x", "w"], ["y"], group=2, dilations=[2, 1])], {"w": rand(4, 3, 3, 3)},
    ),
    "transposed, same": (
        [N("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], auto_pad="SAME_UPPER")], {"w": rand(4, 3, 3, 3)},
    ),
    "transposed, to a shape": (
        [N("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], output_shape=[18, 14])], {"w": rand(4, 3, 3, 3)},
    ),
    "gemm": (
        [N("Flatten", ["x"], ["f"]), N("Gemm", ["f", "w", "b"], ["y"], transB=1, alpha=0.5, beta=2.0)],
        {"w": rand(6, 252), "b": rand(6)},
    ),
    "matmul": ([N("MatMul", ["x", "w"], ["m"]), N("Add", ["b", "m"], ["y"])], {"w": rand(7, 5), "b": rand(5)}),
    "matmul of two values": (
        [N("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]), N("MatMul", ["x", "t"], ["y"])], {},
    ),
    "gemm of a transposed": (
        [N("Reshape", ["x", "k"], ["f"]), N("Gemm", ["f", "w"], ["y"], transA=1)],
        {"k": i64(252, 1), "w": rand(252, 3)},
    ),
}  # fmt: skip


def both(case: tuple, seed: int = 0) -> tuple[dict[str, NDArray], dict[str, NDArray], NDArray]:
    nodes, weights, *shape = case
    shape = shape[0] if shape else IMAGE
    outputs = [n for n in ("y", "z") if any(n in node.output for node in nodes)]
    proto = build(nodes, weights, shape, opset=20, ir=9, outputs=outputs)
    x = 3 * rand(*shape, seed=seed)
    return ReferenceRunner(load(proto)).run({"x": x}), ort(proto, x, optimize=False), x


@pytest.mark.parametrize("name", EQUAL)
def test_equal(name: str):
    ours, theirs, _ = both(EQUAL[name])
    for key, wanted in theirs.items():
        np.testing.assert_array_equal(ours[key], wanted)
        assert ours[key].dtype == wanted.dtype == np.float32


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str):
    ours, theirs, x = both(FUNCTIONS[name])
    size = max(1.0, float(np.abs(x).max()), float(np.abs(theirs["y"]).max()))
    assert ours["y"].shape == theirs["y"].shape and ours["y"].dtype == np.float32
    assert np.abs(ours["y"] - theirs["y"]).max() <= 2**-21 * size


@pytest.mark.parametrize("name", SUMS)
def test_sums(name: str):
    weights = SUMS[name][1]
    ours, theirs, x = both(SUMS[name])
    # At most 252 products, and the magnitudes of one sum are at most those of all products with the largest x.
    w = np.abs(weights["w"]).sum() if "w" in weights else np.abs(x).sum()
    bound = 252 * 2**-24 * (float(w) * float(np.abs(x).max()) + 4)
    assert ours["y"].shape == theirs["y"].shape and ours["y"].dtype == np.float32
    assert np.abs(ours["y"] - theirs["y"]).max() <= bound
    assert np.abs(theirs["y"]).max() > 30 * bound, "the bound is so wide that anything would pass"


ACTIVATIONS: dict[str, list[onnx.NodeProto]] = {
    "silu": [N("Sigmoid", ["c"], ["s"]), N("Mul", ["c", "s"], ["y"])],
    "mish": [N("Softplus", ["c"], ["p"]), N("Tanh", ["p"], ["t"]), N("Mul", ["c", "t"], ["y"])],
    "hard swish": [N("Add", ["c", "three"], ["p"]), N("Clip", ["p", "zero", "six"], ["q"]), N("Mul", ["c", "q"], ["r"]),
                   N("Div", ["r", "six"], ["y"])],
    "hard swish by a gate": [N("HardSigmoid", ["c"], ["h"], alpha=1 / 6, beta=0.5), N("Mul", ["c", "h"], ["y"])],
    "prelu, one slope": [N("PRelu", ["c", "slope"], ["y"])],
    "prelu, a slope per channel": [N("PRelu", ["c", "slopes"], ["y"])],
    "clip": [N("Clip", ["c", "zero", "six"], ["y"])],
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_layers_with_activations(name: str):
    weights = {
        "w": rand(5, 4, 3, 3) / 6, "b": rand(5), "three": np.float32(3), "zero": np.float32(0), "six": np.float32(6),
        "slope": np.float32(0.2).reshape(1, 1, 1), "slopes": rand(5, 1, 1),
    }  # fmt: skip
    nodes = [N("Conv", ["x", "w", "b"], ["c"]), *ACTIVATIONS[name]]
    proto = build(nodes, weights, IMAGE)
    x = 3 * rand(*IMAGE)
    runner = ReferenceRunner(load(proto))
    assert len(runner.operations) == 1 and runner.operations[0].form == "float"
    taps = ["c", *(n.output[0] for n in ACTIVATIONS[name] if n.output[0] != "y")]
    ours = runner.run({"x": x}, taps)
    theirs = OrtRunner(proto.SerializeToString(), 1, optimize=False).run({"x": x}, taps)
    for key in theirs:
        # 36 products of the convolution, whose error the activation (slope at most 1.1) passes on; then the function.
        size = max(1.0, float(np.abs(theirs[key]).max()))
        bound = 1.1 * 36 * 2**-24 * float(np.abs(weights["w"]).sum((1, 2, 3)).max() * np.abs(x).max()) + 2**-21 * size
        assert np.abs(ours[key] - theirs[key]).max() <= 3 * bound, key


@pytest.mark.parametrize("name", ["yolox_nano", "fastestdet", "cifar10_resnet56", "mobilenet_v1_075"])
def test_real_models(name: str, assets):
    """Rounding grows from layer to layer by no fixed factor, most in a few values. The yardstick is how far ONNX
    Runtime's own results with and without its graph optimizations lie apart on average: the reference, which has
    functions of its own but rounds less, may be four times as far away."""
    model = load(assets / "models" / f"{name}.onnx")
    x = np.random.default_rng(0).normal(size=model.input_shape).astype(np.float32)
    ours = ReferenceRunner(model).run({model.input_name: x})
    one, other = (ort(model.float_bytes(), x, optimize) for optimize in (True, False))
    for key, wanted in other.items():
        spread = np.abs(one[key] - wanted).mean()
        assert np.abs(ours[key] - wanted).mean() <= 4 * max(float(spread), 2**-23 * float(np.abs(wanted).mean()))
        assert np.abs(ours[key] - wanted).max() <= 1e-3 * np.abs(wanted).max()


def test_what_it_does_not_know_is_named():
    nodes = [N("Sin", ["x"], ["y"], name="wave")]
    with pytest.raises(UnsupportedError, match=r"Sin 'wave'"):
        ReferenceRunner(load(build(nodes))).run({"x": rand(1, 3, 8, 8)})
    cubic = [N("Resize", ["x", "", "k"], ["y"], mode="cubic", name="smooth")]
    model = load(build(cubic, {"k": np.array([1, 1, 2, 2], np.float32)}))
    with pytest.raises(UnsupportedError, match="Resize 'smooth'"):
        ReferenceRunner(model).run({"x": rand(1, 3, 8, 8)})


def test_inputs_and_taps_are_checked():
    runner = ReferenceRunner(load(build([N("Relu", ["x"], ["y"])])))
    with pytest.raises(InputError, match="'x' is missing"):
        runner.run({})
    with pytest.raises(InputError, match=r"shape \(1, 3, 4, 4\)"):
        runner.run({"x": rand(1, 3, 4, 4)})
    with pytest.raises(KeyError):
        runner.run({"x": rand(1, 3, 8, 8)}, ["nowhere"])
    with pytest.raises(KeyError):
        runner.codes({"x": rand(1, 3, 8, 8)}, ["y"])
    assert list(runner.run({"x": rand(1, 3, 8, 8)}, ["x"])) == ["y", "x"]


def test_every_row_of_the_table_was_run():
    """No operator of the reference is without a case above."""
    from roadworthy.run.reference_ops import OPERATORS

    used = {n.op_type for table in (EQUAL, FUNCTIONS, SUMS) for nodes, *_ in table.values() for n in nodes}
    assert set(OPERATORS) - used <= {"Identity", "Dropout", "Cast", "Sum", "ReduceMin"}
