"""Lowering without the engine: plans executed by a NumPy interpreter equal the reference on the graph, bit for bit, and
ONNX Runtime on float graphs; memory starts as garbage, so that what nobody wrote shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from interpreter import Interpreter
from numpy.typing import NDArray

from onnx_graphs import N, build, ort, rand
from random_encodings import Encoder, feeds
from random_graphs import random_int8_model, random_network
from roadworthy.errors import InputError, UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model, load
from roadworthy.optimize import fold
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.place import place
from roadworthy.quantize.quantize import activation_encodings, quantize_units
from roadworthy.run.native.lower import lower
from roadworthy.run.native.plan import ARENA, F32, Op, Plan
from roadworthy.run.reference import ReferenceRunner
from roadworthy.run.targets import TARGETS

# Two sums of up to 50 float32 products in different orders differ by at most 50 * 2^-24 of the sum of magnitudes, and
# the networks are at most eight such layers deep: 8 * 50 * 2^-24 = 2.4e-5 of the largest value.
FLOAT_BOUND = 2.4e-5

FLOAT_SUMS = (Op.CONV, Op.DEPTHWISE, Op.AVGPOOL)


def close(got: NDArray, wanted: NDArray) -> bool:
    return got.shape == wanted.shape and bool(np.abs(got - wanted).max() <= FLOAT_BOUND * np.abs(wanted).max())


def opcodes(plan: Plan) -> list[Op]:
    return [op.code for op in plan.ops]


@pytest.mark.parametrize("seed", range(80))
def test_integer_networks_equal_the_reference(seed: int):
    model = random_int8_model(seed)
    plan = lower(model)
    assert Plan.from_bytes(plan.to_bytes()) == plan
    given = feeds(model, seed)
    wanted, got = ReferenceRunner(model).run(given), Interpreter(plan, seed).run(given)
    for name in wanted:
        assert np.array_equal(got[name], wanted[name]), f"{name}\n{plan.describe()}"


@pytest.mark.parametrize("seed", range(60))
def test_float_networks_agree_with_onnx_runtime(seed: int):
    rng = np.random.default_rng(seed)
    proto = random_network(lambda n: int(rng.integers(n)), seed)
    try:
        plan = lower(load(proto))
    except UnsupportedError as error:
        assert "cubic" in str(error)
        return
    x = rand(1, 3, 8, 8, seed=seed)
    wanted, got = ort(proto, x), Interpreter(plan, seed).run({"x": x})
    assert all(close(got[name], wanted[name]) for name in wanted), plan.describe()


def quick(name: str, assets: Path) -> Model:
    """A real network with encodings from one noise image."""
    model = fold(load(assets / "models" / f"{name}.onnx"))
    target = TARGETS["openvino"]
    placement = place(model.ir, target)
    statistics = calibrate(model, placement.observed, [rand(*model.input_shape)], 2)
    return quantize_units(model, placement, activation_encodings(placement, statistics, target, "minmax"), "minmax", {})


@pytest.mark.assets
@pytest.mark.parametrize("name", ["mobilenet_v1_075", "fastestdet", "cifar10_resnet56", "yolox_nano"])
def test_real_networks_equal_the_reference(name: str, assets: Path):
    model = quick(name, assets)
    plan = lower(model)
    given = {model.input_name: rand(*model.input_shape, seed=3)}
    wanted, got = ReferenceRunner(model).run(given), Interpreter(plan).run(given)
    for key in wanted:
        assert np.array_equal(got[key], wanted[key])
    copies = opcodes(plan).count(Op.COPY)
    if name in ("yolox_nano", "mobilenet_v1_075"):
        assert copies == 0
    if name == "yolox_nano":
        assert opcodes(plan).count(Op.CONV) == 83 and plan.ops[1].attributes[:6] == (6, 6, 2, 2, 2, 2)
        assert plan.arena_bytes < 0.15 * plan.arena_unshared_bytes
    if name == "fastestdet":  # two planes of results go into an output that is stored channel by channel
        assert copies == 2 and 24 <= opcodes(plan).count(Op.GATHER) <= 26


@pytest.mark.parametrize("seed", [1, 4, 9, 16, 25, 36])
def test_taps_show_values_and_change_no_result(seed: int):
    model = random_int8_model(seed)
    names = [n for n, v in g.values(model.ir).items() if g.constant(v) is None and n not in model.output_names]
    plan, given = lower(model, tap=names), feeds(model, seed)
    got, without = Interpreter(plan, seed).run(given), Interpreter(lower(model), seed).run(given)
    assert all(np.array_equal(got[n], without[n]) for n in without)
    wanted = ReferenceRunner(model).run(given, names)
    for name in names:
        encoding = model.encodings.get(name)
        # Inside a layer the reference rounds sum * scale to codes, the engine sum * (scale / s): at most a code apart.
        step = 0.0 if encoding is None else float(encoding.scale.max()) * 1.001
        assert np.abs(got[name] - wanted[name]).max() <= step, name


def check(nodes: list[onnx.NodeProto], weights: dict | None = None, shape=(1, 4, 6, 8), outputs=("y",)) -> Plan:
    """Lower, run, and compare with ONNX Runtime."""
    proto = build(nodes, weights, shape, outputs=outputs)
    x = rand(*shape)
    plan = lower(load(proto))
    wanted, got = ort(proto, x), Interpreter(plan).run({"x": x})
    for name in outputs:
        assert close(got[name], wanted[name]), plan.describe()
    return plan


def pointwise(source: str, out: str, weight: str = "w") -> onnx.NodeProto:
    return N("Conv", [source, weight], [out])


CASES: dict[str, tuple[list[onnx.NodeProto], dict]] = {
    "grouped": ([N("Conv", ["x", "w", "b"], ["y"], group=2, pads=[1, 1, 1, 1])], {"w": rand(6, 2, 3, 3), "b": rand(6)}),
    "dilated": ([N("Conv", ["x", "w"], ["y"], dilations=[2, 1], pads=[2, 0, 1, 2])], {"w": rand(5, 4, 3, 3)}),
    "same": ([N("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2, 2])], {"w": rand(5, 4, 4, 3)}),
    "multiplied depthwise": ([N("Conv", ["x", "w"], ["y"], group=4)], {"w": rand(8, 1, 3, 3)}),
    "transposed 2x2": ([N("ConvTranspose", ["x", "w"], ["c"], strides=[2, 2]), N("Relu", ["c"], ["y"])],
                       {"w": rand(4, 3, 2, 2)}),
    "transposed 3x3": ([N("ConvTranspose", ["x", "w", "b"], ["y"], strides=[2, 2], pads=[1, 1, 0, 1],
                          output_padding=[0, 1])], {"w": rand(4, 3, 3, 3), "b": rand(3)}),
    "transposed grouped": ([N("ConvTranspose", ["x", "w"], ["y"], strides=[3, 2], group=2, dilations=[1, 2])],
                           {"w": rand(4, 3, 3, 2)}),
    "depth to space": ([N("DepthToSpace", ["x"], ["a"], blocksize=2), N("DepthToSpace", ["x"], ["b"], blocksize=2,
                        mode="CRD"), N("Concat", ["a", "b"], ["y"], axis=1)], {}),
    "space to depth": ([pointwise("x", "a"), N("SpaceToDepth", ["a"], ["y"], blocksize=2)], {"w": rand(4, 4, 1, 1)}),
    "reversed channels": ([N("Gather", ["x", "i"], ["a"], axis=1), pointwise("a", "y")],
                          {"i": np.array([3, 1, 0, 2]), "w": rand(4, 4, 1, 1)}),
    "rows by index": ([N("Gather", ["x", "i"], ["y"], axis=2)], {"i": np.array([[5, 0], [1, 2]])}),
    "backwards": ([N("Slice", ["x", "s", "e", "a", "t"], ["y"])],
                  {"s": np.array([-1]), "e": np.array([-99]), "a": np.array([3]), "t": np.array([-2])}),
    "softmax over channels": ([N("Softmax", ["x"], ["y"], axis=1)], {}),
    "prelu": ([pointwise("x", "c"), N("PRelu", ["c", "s"], ["y"])], {"w": rand(4, 4, 1, 1), "s": rand(4, 1, 1)}),
    "batch norm": ([N("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])],
                   {"s": rand(4), "b": rand(4, seed=1), "m": rand(4, seed=2), "v": rand(4, seed=3) ** 2 + 1}),
    "mean": ([N("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)], {}),
    "expand": ([N("GlobalMaxPool", ["x"], ["m"]), N("Expand", ["m", "s"], ["y"])], {"s": np.array([1, 4, 6, 8])}),
    "pads": ([N("Pad", ["x", "p", "f"], ["a"]), N("Pad", ["a", "q"], ["y"], mode="reflect")],
             {"p": np.array([0, 1, 0, 2, 0, 0, 1, 0]), "f": np.float32(0.5), "q": np.array([0, 0, 1, 2, 0, 0, 2, 1])}),
    "pad and average": ([N("Pad", ["x", "p"], ["a"]), N("AveragePool", ["a"], ["y"], kernel_shape=[3, 3],
                         strides=[2, 2])], {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "average with padding": ([N("AveragePool", ["x"], ["y"], kernel_shape=[3, 2], pads=[1, 0, 1, 1],
                              count_include_pad=1)], {}),
    "ceil": ([N("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)], {}),
    "half pixel": ([N("Resize", ["x", "", "s"], ["y"], mode="linear")], {"s": np.array([1, 1, 1.5, 2], np.float32)}),
    "corners": ([N("Resize", ["x", "", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="align_corners")],
                {"s": np.array([1, 4, 9, 5])}),
    "pairs": ([N("Sub", ["x", "k"], ["a"]), N("Pow", ["a", "t"], ["b"]), N("Max", ["x", "a", "b"], ["c"]),
               N("Div", ["c", "d"], ["e"]), N("Sum", ["e", "x", "a"], ["y"])],
              {"k": rand(1, 4, 1, 1), "t": np.float32(2), "d": rand(6, 8) ** 2 + 1}),
    "rows of a matrix": ([N("Reshape", ["x", "s"], ["a"]), N("MatMul", ["a", "w"], ["m"]), N("Add", ["m", "b"], ["c"]),
                          N("Sigmoid", ["c"], ["y"])], {"s": np.array([1, 4, 48]), "w": rand(48, 5), "b": rand(5)}),
    "gemm on an image": ([pointwise("x", "c"), N("Flatten", ["c"], ["f"]), N("Gemm", ["f", "v", "b"], ["y"], transB=1)],
                         {"w": rand(3, 4, 1, 1), "v": rand(7, 144) / 12, "b": rand(7)}),
    "focus": ([N("Slice", ["x", f"s{i}{j}", "e", "a", "t"], [f"p{i}{j}"]) for j in (0, 1) for i in (0, 1)]
              + [N("Concat", ["p00", "p10", "p01", "p11"], ["f"], axis=1), N("Conv", ["f", "w"], ["y"],
                 pads=[1, 1, 1, 1])],
              {"w": rand(5, 16, 3, 3) / 12, "e": np.array([99, 99]), "a": np.array([2, 3]), "t": np.array([2, 2]),
               **{f"s{i}{j}": np.array([i, j]) for i in (0, 1) for j in (0, 1)}}),
    "anchors": ([N("Conv", ["x", "w", "b"], ["c"]), N("Reshape", ["c", "s"], ["r"]),
                 N("Transpose", ["r"], ["t"], perm=[0, 1, 3, 4, 2]), N("Sigmoid", ["t"], ["g"]),
                 N("Split", ["g", "parts"], ["xy", "wh", "rest"], axis=4), N("Mul", ["xy", "two"], ["xy2"]),
                 N("Add", ["xy2", "grid"], ["xy3"]), N("Mul", ["wh", "two"], ["wh2"]),
                 N("Pow", ["wh2", "two"], ["wh3"]),
                 N("Mul", ["wh3", "sides"], ["wh4"]), N("Concat", ["xy3", "wh4", "rest"], ["d"], axis=4),
                 N("Reshape", ["d", "z"], ["e"]), N("Concat", ["e", "e"], ["y"], axis=1)],
                {"w": rand(21, 4, 1, 1), "b": rand(21), "s": np.array([1, 3, 7, 6, 8]), "parts": np.array([2, 2, 3]),
                 "two": np.float32(2), "grid": rand(1, 1, 6, 8, 2), "sides": rand(1, 3, 1, 1, 2),
                 "z": np.array([1, -1, 7])}),
    "distribution": ([N("Conv", ["x", "w"], ["c"]), N("Conv", ["x", "w"], ["k"], strides=[2, 2]),
                      N("Reshape", ["c", "s"], ["c2"]), N("Reshape", ["k", "s"], ["k2"]),
                      N("Concat", ["c2", "k2"], ["all"], axis=2), N("Split", ["all", "parts"], ["box", "cls"], axis=1),
                      N("Reshape", ["box", "z"], ["b1"]), N("Transpose", ["b1"], ["b2"], perm=[0, 2, 1, 3]),
                      N("Softmax", ["b2"], ["b3"], axis=1), N("Conv", ["b3", "v"], ["b4"]),
                      N("Reshape", ["b4", "four"], ["b5"]), N("Slice", ["b5", "o0", "o2", "one"], ["lt"]),
                      N("Slice", ["b5", "o2", "o4", "one"], ["rb"]), N("Sub", ["grid", "lt"], ["p"]),
                      N("Add", ["grid", "rb"], ["q"]), N("Concat", ["p", "q"], ["box4"], axis=1),
                      N("Mul", ["box4", "strides"], ["m"]), N("Sigmoid", ["cls"], ["cls2"]),
                      N("Concat", ["m", "cls2"], ["y"], axis=1)],
                     {"w": rand(25, 4, 1, 1), "s": np.array([1, 25, -1]), "parts": np.array([20, 5]),
                      "z": np.array([1, 4, 5, 60]), "v": np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1),
                      "four": np.array([1, 4, 60]), "o0": np.array([0]), "o2": np.array([2]), "o4": np.array([4]),
                      "one": np.array([1]), "grid": rand(1, 2, 60), "strides": rand(1, 60)}),
    "squeeze and excite": ([pointwise("x", "c"), N("GlobalAveragePool", ["c"], ["p"]), N("Conv", ["p", "v"], ["e"]),
                            N("Relu", ["e"], ["r"]), N("Conv", ["r", "u"], ["h"]), N("HardSigmoid", ["h"], ["g"]),
                            N("Mul", ["c", "g"], ["m"]), N("Conv", ["m", "t"], ["y"], pads=[1, 1, 1, 1])],
                           {"w": rand(6, 4, 1, 1), "v": rand(2, 6, 1, 1), "u": rand(6, 2, 1, 1),
                            "t": rand(3, 6, 3, 3) / 8}),
    "unpadded flatten of many": ([pointwise("x", "c"), N("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]),
                                  N("Reshape", ["t", "s"], ["r"]), N("Sigmoid", ["r"], ["y"])],
                                 {"w": rand(6, 4, 1, 1), "s": np.array([1, -1, 3])}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators_agree_with_onnx_runtime(name: str):
    check(*CASES[name])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_operators_on_codes_equal_the_reference(name: str, seed: int):
    rng = np.random.default_rng([seed, *name.encode()])
    plain = load(build(*CASES[name], (1, 4, 6, 8)))
    model = Encoder(plain, lambda n: int(rng.integers(n)), seed == 0).encoded()
    given = feeds(model, seed)
    plan = lower(model)
    assert Op.QUANTIZE in opcodes(plan)
    wanted, got = ReferenceRunner(model).run(given)["y"], Interpreter(plan, seed).run(given)["y"]
    # Sums of floats (in another order for a space-to-depth) are no matter of bits, nor is a batch normalization.
    sums = [op for op in plan.ops if op.code in FLOAT_SUMS and plan.tensors[op.tensors[0]].dtype == F32]
    exact = not sums and name != "batch norm"
    assert np.array_equal(got, wanted) if exact else close(got, wanted), plan.describe()


def test_an_image_that_comes_in_pixel_by_pixel_is_quantized_where_it_is_read():
    nodes = [N("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), N("Conv", ["t", "w"], ["y"], pads=[1, 1, 1, 1])]
    model = load(build(nodes, {"w": rand(5, 3, 3, 3) / 5}, (1, 6, 8, 3)))
    image = Encoding(np.float32(0.02), np.int64(120))
    weight = Encoding(np.full(5, 0.01, np.float32), np.zeros(5, np.int64), 8, True, 0)
    model = replace(model, encodings={"x": image, "t": image, "w": weight})
    plan, given = lower(model), {"x": rand(1, 6, 8, 3)}
    assert opcodes(plan) == [Op.QUANTIZE, Op.CONV, Op.COPY]
    assert np.array_equal(Interpreter(plan).run(given)["y"], ReferenceRunner(model).run(given)["y"])


def test_space_to_depth_in_front_of_a_convolution_is_one_convolution():
    plan = check(*CASES["focus"])
    assert opcodes(plan) == [Op.COPY, Op.CONV, Op.COPY] and plan.ops[1].attributes[:6] == (6, 6, 2, 2, 2, 2)


def test_parts_of_a_concat_are_written_in_place_even_through_a_chain():
    pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [pointwise("x", "a"), N("MaxPool", ["a"], ["b"], **pool), N("MaxPool", ["b"], ["c"], **pool),
             N("Concat", ["a", "b"], ["ab"], axis=1), N("Concat", ["ab", "c"], ["f"], axis=1),
             N("Conv", ["f", "v"], ["y"], pads=[1, 1, 1, 1])]  # fmt: skip
    plan = check(nodes, {"w": rand(4, 4, 1, 1), "v": rand(3, 12, 3, 3) / 10})
    # The input is brought into the order of pixels, the result into that of planes; nothing else is copied.
    assert opcodes(plan) == [Op.COPY, Op.CONV, Op.MAXPOOL, Op.MAXPOOL, Op.CONV, Op.COPY]


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_value_twice_in_a_concat_in_two_and_read_with_a_border(axis: int):
    def sized(*parts: int) -> int:
        return sum(parts) if axis == 1 else 4

    nodes = [pointwise("x", "a"), N("Relu", ["a"], ["r"]), N("Concat", ["a", "r", "a"], ["f"], axis=axis),
             N("Concat", ["r", "f", "x"], ["h"], axis=axis), N("Conv", ["a", "k"], ["c"], pads=[1, 1, 1, 1]),
             N("Conv", ["f", "u"], ["d"], pads=[2, 0, 0, 2]),
             N("Conv", ["h", "v"], ["e"], pads=[0, 1, 1, 0])]  # fmt: skip
    weights = {"w": rand(4, 4, 1, 1), "k": rand(3, 4, 3, 3) / 6, "u": rand(2, sized(4, 4, 4), 3, 3) / 8,
               "v": rand(2, sized(4, 12, 4), 2, 2) / 8}  # fmt: skip
    check(nodes, weights, outputs=("c", "d", "e"))


def test_a_shuffle_is_one_gather_per_half():
    nodes = [pointwise("x", "c"), N("Reshape", ["c", "s"], ["r"]), N("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3, 4]),
             N("Reshape", ["t", "z"], ["f"]), N("Split", ["f"], ["p", "q"], axis=1), N("Conv", ["p", "v"], ["a"]),
             N("Conv", ["q", "v"], ["b"])]  # fmt: skip
    weights = {
        "w": rand(8, 4, 1, 1),
        "s": np.array([1, 2, 4, 6, 8]),
        "z": np.array([1, 8, 6, 8]),
        "v": rand(3, 4, 1, 1),
    }
    plan = check(nodes, weights, outputs=("a", "b"))
    assert opcodes(plan).count(Op.GATHER) == 1


def test_a_value_that_is_an_output_and_read_on():
    nodes = [N("Relu", ["x"], ["y"]), N("Conv", ["y", "w"], ["z"], pads=[1, 1, 1, 1]), N("Flatten", ["y"], ["f"])]
    check(nodes, {"w": rand(3, 4, 3, 3) / 6}, outputs=("y", "z", "f"))


def test_stored_weights_stay_stored():
    model = load(build([N("Conv", ["x", "w", "b"], ["a"]), N("Conv", ["a", "v"], ["y"], group=3)],
                       {"w": rand(3, 4, 3, 3), "b": rand(3), "v": rand(3, 1, 2, 2)}, (1, 4, 6, 8)))  # fmt: skip
    narrow = Encoding(np.full(3, 0.02, np.float32), np.zeros(3, np.int64), 8, True, 0, True)
    wide = Encoding(np.float32(0.001), np.int64(0), 16, True, None, True)
    model = replace(model, encodings={"w": narrow, "v": wide})
    plan, given = lower(model), {"x": rand(1, 4, 6, 8)}
    layers = [op for op in plan.ops if op.code in (Op.CONV, Op.DEPTHWISE)]
    assert [op.attributes[17] for op in layers] == [1, 2]
    assert [len(op.blobs[0]) for op in layers] == [3 * 4 * 9, 2 * 3 * 4]
    wanted = ReferenceRunner(model).run(given)["y"]
    assert close(Interpreter(plan).run(given)["y"], wanted)
    assert len(plan.notes) == 2 and "float" in plan.notes[0]


def test_elementwise_results_take_over_the_buffer_of_an_operand():
    nodes = [N("Conv", ["x", "w"], ["a"]), N("Relu", ["a"], ["b"]), N("Sqrt", ["b"], ["c"]), N("Exp", ["c"], ["d"]),
             N("Conv", ["d", "v"], ["y"])]  # fmt: skip
    plan = check(nodes, {"w": rand(4, 4, 1, 1), "v": rand(2, 4, 1, 1) / 50})
    for op in plan.ops:
        if op.code == Op.UNARY:
            x, y = (plan.tensors[t] for t in op.tensors)
            assert x == y and x.space == ARENA


def test_other_outputs_than_the_models_own():
    model = load(build([pointwise("x", "a"), N("Sigmoid", ["a"], ["y"])], {"w": rand(3, 4, 1, 1)}, (1, 4, 6, 8)))
    plan = lower(model, outputs=["a"])
    assert [p.name for p in plan.outputs] == ["a"] and Op.UNARY not in opcodes(plan)
    with pytest.raises(InputError, match="'nothing'"):
        lower(model, tap=["nothing"])


@pytest.mark.parametrize(
    "node, weights, words",
    [
        (N("Resize", ["x", "", "s"], ["y"], mode="cubic", name="up"), {"s": np.float32([1, 1, 2, 2])}, "'up'.*cubic"),
        (N("InstanceNormalization", ["x", "s", "s"], ["y"], name="norm"), {"s": rand(4)}, "'norm'"),
        (N("MatMul", ["x", "x"], ["y"], name="attention"), {}, "'attention'"),
        (N("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2], name="pool"), {}, "'pool'.*dilated"),
        (N("ReduceMean", ["x"], ["y"], axes=[1], name="mean"), {}, "'mean'"),
    ],
)  # fmt: skip
def test_what_cannot_be_lowered_is_named(node: onnx.NodeProto, weights: dict, words: str):
    with pytest.raises(UnsupportedError, match=words):
        lower(load(build([node], weights, (1, 4, 8, 8))))


def test_the_interpreter_notices_a_border_that_nobody_wrote():
    proto = build([N("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])], {"w": rand(3, 4, 3, 3)}, (1, 4, 6, 8))
    plan, x = lower(load(proto)), rand(1, 4, 6, 8)
    assert any(any(t.border) for t in plan.tensors)
    written = plan.ops[0].tensors[-1]
    bare = list(plan.tensors)
    bare[written] = replace(bare[written], border=(0, 0, 0, 0), fill=b"")
    bare.append(plan.tensors[written])
    conv = replace(plan.ops[1], tensors=(len(bare) - 1, plan.ops[1].tensors[1]))
    damaged = replace(plan, tensors=tuple(bare), ops=(plan.ops[0], conv, *plan.ops[2:]))
    assert not close(Interpreter(damaged).run({"x": x})["y"], ort(proto, x)["y"])


def test_a_border_beside_a_single_column():
    nodes = [N("Gather", ["x", "i"], ["a"], axis=1), N("Reshape", ["a", "s"], ["b"]), N("Reshape", ["b", "z"], ["c"]),
             N("Conv", ["c", "w"], ["y"], pads=[1, 1, 1, 1])]  # fmt: skip
    weights = {"i": np.array([2, 0, 0, 1, 3]), "s": np.array([5, 3]), "z": np.array([1, 5, 3, 1]),
               "w": rand(2, 5, 3, 3) / 5}  # fmt: skip
    check(nodes, weights, (1, 4, 3, 1))


@pytest.mark.parametrize(("kernel", "pad"), [(2, 1), (2, 2), (3, 3)])
def test_a_window_in_the_padding_alone_keeps_the_pad_apart(kernel: int, pad: int):
    pads = np.array([0, 0, pad, pad, 0, 0, pad, pad], np.int64)
    nodes = [N("Pad", ["x", "p"], ["a"]), N("AveragePool", ["a"], ["y"], kernel_shape=[kernel, kernel])]
    plan = lower(load(build(nodes, {"p": pads})))
    pools = [op for op in plan.ops if op.code == Op.AVGPOOL]
    assert len(pools) == 1 and pools[0].attributes[4:6] == ((pad, pad) if pad < kernel else (0, 0))
