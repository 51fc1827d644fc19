"""Old and odd models: loaded, they compute what ONNX Runtime computes from the file as it was."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from onnx import helper, numpy_helper

from onnx_graphs import N, build, const, ort, rand
from roadworthy.errors import InputError, UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.model import load

W = rand(4, 3, 3, 3)
NORM = {"g": np.abs(rand(4)) + 0.5, "b": rand(4, seed=1), "m": rand(4, seed=2), "v": np.abs(rand(4, seed=3)) + 0.5}
CONV = N("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])
BN = ["c", "g", "b", "m", "v"]
# Two runtimes' graph optimizers may add up in another order: 27 products of normal numbers of size about 1 differ by
# a few times 27 * 2^-24, and 1e-5 is three times that.
BOUND = 1e-5


def chain(opset: int) -> list:
    """Reshape(c, [shape(c)[0], -1]) as PyTorch wrote it for x.view(x.size(0), -1)."""
    unsqueeze = [N("Unsqueeze", ["i"], ["u"], axes=[0])] if opset < 13 else [N("Unsqueeze", ["i", "zero"], ["u"])]
    return [CONV, const("zero", np.zeros(1, np.int64)), N("Shape", ["c"], ["s"]), const("at", np.array(0)),
            N("Gather", ["s", "at"], ["i"]), *unsqueeze, const("rest", np.array([-1])),
            N("Concat", ["u", "rest"], ["t"], axis=0), N("Reshape", ["c", "t"], ["y"])]  # fmt: skip


def scales(h: float, w: float | None = None) -> dict:
    return {"s": np.array([1, 1, h, w or h], np.float32)}


OLD = {
    "conv-bn 7 spatial": (
        7,
        [CONV, N("BatchNormalization", BN, ["n"], spatial=1), N("Relu", ["n"], ["y"])],
        {"w": W, **NORM},
    ),
    "conv-bn 8": (8, [CONV, N("BatchNormalization", BN, ["y"], epsilon=0.01)], {"w": W, **NORM}),
    "conv-bn 9": (9, [CONV, N("BatchNormalization", BN, ["n"]), N("Relu", ["n"], ["y"])], {"w": W, **NORM}),
    "dropout 7": (7, [CONV, N("Dropout", ["c"], ["d"], ratio=0.5), N("Relu", ["d"], ["y"])], {"w": W}),
    "dropout 10 with mask": (10, [CONV, N("Dropout", ["c"], ["d", "mask"]), N("Relu", ["d"], ["y"])], {"w": W}),
    "dropout 12 last": (12, [CONV, N("Dropout", ["c", "r"], ["y"])], {"w": W, "r": np.float32(0.5)}),
    "upsample 7 nearest": (7, [N("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 2.0, 2.5], mode="nearest")], {}),
    "upsample 7 linear": (7, [N("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 3.0, 2.0], mode="linear")], {}),
    "upsample 9 nearest": (9, [N("Upsample", ["x", "s"], ["y"], mode="nearest")], scales(2)),
    "upsample 9 linear": (9, [N("Upsample", ["x", "s"], ["y"], mode="linear")], scales(2)),
    "upsample 9 constant": (9, [const("s", scales(2)["s"]), N("Upsample", ["x", "s"], ["y"], mode="linear")], {}),
    "upsample 9 computed": (
        9,
        [
            N("Shape", ["x"], ["a"]),
            N("Slice", ["a"], ["hw"], starts=[2], ends=[4]),
            N("Cast", ["hw"], ["f"], to=1),
            N("Mul", ["f", "two"], ["d"]),
            N("Div", ["d", "f"], ["r"]),
            N("Concat", ["one", "r"], ["s"], axis=0),
            N("Upsample", ["x", "s"], ["y"], mode="linear"),
        ],
        {"two": np.float32(2), "one": np.ones(2, np.float32)},
    ),
    **{
        f"resize 10 {mode} {s}": (10, [N("Resize", ["x", "s"], ["y"], mode=mode)], scales(s))
        for mode in ("nearest", "linear")
        for s in (2, 1.7, 0.7, 0.5, 0.3)
    },
    "resize 11": (
        11,
        [N("Resize", ["x", "r", "s"], ["y"], mode="linear", coordinate_transformation_mode="align_corners")],
        {"r": np.zeros(0, np.float32), **scales(2)},
    ),
    "clip 6": (7, [N("Clip", ["x"], ["y"], min=-0.5, max=0.6)], {}),
    "clip 6 min": (7, [N("Clip", ["x"], ["y"], min=-0.5)], {}),
    "clip 6 max": (7, [CONV, N("Clip", ["c"], ["y"], max=0.5)], {"w": W}),
    "pad 2": (
        7,
        [N("Pad", ["x"], ["p"], pads=[0, 0, 1, 2, 0, 0, 3, 0], value=0.5), N("Conv", ["p", "w"], ["y"])],
        {"w": W},
    ),
    "pad 2 reflect": (7, [N("Pad", ["x"], ["y"], pads=[0, 0, 1, 2, 0, 0, 3, 0], mode="reflect")], {}),
    "slice 1": (7, [N("Slice", ["x"], ["y"], starts=[1, -6], ends=[7, 1000], axes=[2, 3])], {}),
    "slice 1 without axes": (7, [N("Slice", ["x"], ["y"], starts=[0, 0, -5], ends=[1, 2, -1])], {}),
    "slice 10": (
        10,
        [N("Slice", ["x", "a", "e", "d", "t"], ["y"])],
        {"a": np.array([0]), "e": np.array([8]), "d": np.array([3]), "t": np.array([2])},
    ),
    "mean, squeeze, unsqueeze": (
        11,
        [
            N("ReduceMean", ["x"], ["r"], axes=[-1, -2]),
            N("Squeeze", ["r"], ["s"], axes=[2, 3]),
            N("Unsqueeze", ["s"], ["y"], axes=[0, 3]),
        ],
        {},
    ),
    "squeeze all": (7, [N("ReduceMean", ["x"], ["r"], axes=[2, 3]), N("Squeeze", ["r"], ["y"])], {}),
    "reduce": (7, [N("ReduceSum", ["x"], ["a"], axes=[1], keepdims=0), N("ReduceMax", ["a"], ["y"])], {}),
    **{
        f"{op} {opset} axis {axis}": (opset, [N(op, ["x"], ["y"], **({} if axis is None else {"axis": axis}))], {})
        for op in ("Softmax", "LogSoftmax")
        for opset in (7, 11)
        for axis in (None, 1, 2, 3)
    },
    "gemm 7": (
        7,
        [N("Flatten", ["x"], ["f"]), N("Gemm", ["f", "k", "o"], ["y"], alpha=0.5, beta=2.0, transB=1)],
        {"k": rand(10, 192), "o": rand(10)},
    ),
    "split 2": (7, [N("Split", ["x"], ["a", "b"], axis=2, split=[3, 5]), N("Concat", ["b", "a"], ["y"], axis=2)], {}),
    "split 2 even": (7, [N("Split", ["x"], ["a", "b"], axis=2), N("Add", ["b", "a"], ["y"])], {}),
    "prelu 7": (7, [CONV, N("PRelu", ["c", "p"], ["y"])], {"w": W, "p": rand(4, 1, 1)}),
    "view chain 9": (9, chain(9), {"w": W}),
    "view chain 12": (12, chain(12), {"w": W}),
    "double constant": (9, [const("d", np.array(2.5)), N("Cast", ["d"], ["f"], to=1), N("Mul", ["x", "f"], ["y"])], {}),
    "double inside": (
        7,
        [N("Cast", ["x"], ["a"], to=11), N("Mul", ["a", "d"], ["e"]), N("Cast", ["e"], ["y"], to=1)],
        {"d": np.array([2.5])},
    ),
    "half inside": (
        12,
        [N("Cast", ["x"], ["a"], to=10), N("Conv", ["a", "h"], ["e"]), N("Cast", ["e"], ["y"], to=1)],
        {"h": W.astype(np.float16)},
    ),
    "top k 1": (7, [N("TopK", ["x"], ["y", "at"], k=2, axis=3)], {}),
    "constant of shape 9": (
        9,
        [N("ConstantOfShape", ["n"], ["z"]), N("Add", ["x", "z"], ["y"])],
        {"n": np.array([1, 3, 8, 8])},
    ),
    "sum, mean, min": (
        8,
        [N("Sum", ["x", "a"], ["s"]), N("Mean", ["s", "x"], ["e"]), N("Min", ["e", "a"], ["y"])],
        {"a": rand(3, 1, 1)},
    ),
}


@pytest.mark.parametrize("listed", [True, False], ids=["weights are inputs", "weights are not inputs"])
@pytest.mark.parametrize("case", OLD)
def test_an_old_model_computes_the_same(case: str, listed: bool):
    opset, nodes, weights = OLD[case]
    proto = build(nodes, weights, opset=opset, ir=3 if listed else 7, weights_are_inputs=listed)
    x = rand(1, 3, 8, 8, seed=7)
    before, model = ort(proto, x), load(proto)
    after = ort(model.float_bytes(), x)
    assert list(after) == list(before)
    bound = 2e-2 if case == "half inside" else BOUND  # half precision: 11 bits of numbers up to about 8
    for name in before:
        assert_allclose(after[name], before[name], atol=bound, rtol=0)
    assert [v.name for v in g.inputs(model.ir)] == ["x"] and g.opset(model.ir) >= 13
    assert all(g.static_shape(v) is not None for v in g.values(model.ir).values())


def test_what_can_be_computed_ahead_is():
    ops = [n.op_type for n in g.nodes(load(build(chain(9), {"w": W}, opset=9)).ir)]
    assert ops == ["Conv", "Reshape"]


def test_operands_aligned_at_an_axis_before_opset_7():
    # No runtime runs operator set 6 any more: the witness is the definition in NumPy.
    x = rand(1, 3, 8, 8)
    for axis, size in enumerate(x.shape):
        b = rand(size, seed=axis)
        proto = build(
            [N("Add", ["x", "b"], ["y"], broadcast=1, axis=axis)], {"b": b}, opset=6, ir=3, weights_are_inputs=True
        )
        shape = [1] * 4
        shape[axis] = -1
        assert_allclose(ort(load(proto).float_bytes(), x)["y"], x + b.reshape(shape), atol=1e-6)


def test_a_dynamic_batch_becomes_one_and_a_dynamic_size_must_be_given():
    nodes = [CONV, N("GlobalAveragePool", ["c"], ["y"])]
    assert load(build(chain(12), {"w": W}, ("N", 3, 8, 8), opset=12)).input_shape == (1, 3, 8, 8)
    open_size = build(nodes, {"w": W}, ("N", 3, "H", "W"), opset=11)
    with pytest.raises(InputError, match=r"'x' is dynamic; give it with --size"):
        load(open_size)
    model = load(open_size, input_hw=(16, 12))
    x = rand(1, 3, 16, 12)
    assert model.input_shape == x.shape
    assert_allclose(ort(model.float_bytes(), x)["y"], ort(open_size, x)["y"], atol=BOUND)


@pytest.mark.parametrize("size", [(1, 8, 6, 3), ("N", "H", "W", 3)])
def test_an_image_with_channels_last(size: tuple):
    proto = build([N("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), N("Conv", ["t", "w"], ["y"])], {"w": W}, size)
    model = load(proto, input_hw=None if size[1] == 8 else (8, 6))
    assert model.input_shape == (1, 8, 6, 3)
    x = rand(1, 8, 6, 3)
    assert_allclose(ort(model.float_bytes(), x)["y"], ort(proto, x)["y"], atol=BOUND)


@pytest.mark.parametrize("opset", [11, 17])
def test_functions_are_inlined_whatever_their_operator_set(opset: int):
    if opset < 13:
        squeeze = [N("Squeeze", ["a"], ["r"], axes=[0]), N("Unsqueeze", ["r"], ["b"], axes=[0])]
    else:
        zero = const("zero", np.zeros(1, np.int64))
        squeeze = [zero, N("Squeeze", ["a", "zero"], ["r"]), N("Unsqueeze", ["r", "zero"], ["b"])]
    function = helper.make_function("my", "There", ["a"], ["b"], squeeze, [helper.make_opsetid("", opset)])
    nodes = [N("There", ["x"], ["z"], domain="my"), N("There", ["z"], ["v"], domain="my"), N("Relu", ["v"], ["y"])]
    proto = build(nodes, opset=opset, imports=[helper.make_opsetid("my", 1)], functions=[function])
    x = rand(1, 3, 8, 8)
    assert_allclose(ort(load(proto).float_bytes(), x)["y"], np.maximum(x, 0))


def test_names_of_outputs_survive_and_every_node_has_one_of_its_own():
    nodes = [
        N("Conv", ["x", "w"], ["c"], name="same"),
        N("Relu", ["c"], ["r"], name="same"),
        N("Dropout", ["r"], ["out"]),
    ]
    model = load(build(nodes, {"w": W}, outputs=("out", "c")))
    assert model.output_names == ("out", "c")
    names = [n.name for n in g.nodes(model.ir)]
    assert len(set(names)) == len(names) and all(names)


def test_the_same_file_gives_the_same_bytes():
    opset, nodes, weights = OLD["view chain 9"]
    proto = build(nodes, weights, opset=opset)
    assert load(proto).float_bytes() == load(proto.SerializeToString()).float_bytes()


@pytest.mark.parametrize("bias", [None, (), (1,), (5,), (1, 1), (1, 5), (2, 5)])
def test_gemm_becomes_plain(bias: tuple | None):
    weights = {"k": rand(192, 5)} if bias is None else {"k": rand(192, 5), "o": rand(*bias)}
    for_two = bias == (2, 5)  # a bias per row as well: not one number per column
    flat = N("Reshape", ["x", "to"], ["f"])
    weights["to"] = np.array([2 if for_two else 1, -1])
    nodes = [flat, N("Gemm", ["f", "k", *(["o"] if bias is not None else [])], ["y"], alpha=0.25, beta=3.0)]
    x = rand(1, 3, 8, 16 if for_two else 8)
    proto = build(nodes, weights, x.shape)
    model = load(proto)
    gemm = g.nodes(model.ir)[-1]
    assert g.attribute(gemm, "alpha", 1.0) == 1.0 and g.attribute(gemm, "beta", 1.0) == (3.0 if for_two else 1.0)
    assert_allclose(ort(model.float_bytes(), x)["y"], ort(proto, x)["y"], atol=2e-5)


def test_a_huge_constant_is_not_computed_ahead():
    nodes = [N("ConstantOfShape", ["n"], ["z"]), N("ReduceSum", ["z"], ["e"], keepdims=0), N("Add", ["x", "e"], ["y"])]
    model = load(build(nodes, {"n": np.array([1 << 20, 1 << 20])}))  # 4 TB
    assert "ConstantOfShape" in [n.op_type for n in g.nodes(model.ir)]


REFUSED = {
    "resize up and down": (
        10,
        [N("Resize", ["x", "s"], ["y"], name="odd")],
        scales(2, 0.5),
        "'odd' enlarges one axis and shrinks",
    ),
    "hardmax": (11, [N("Hardmax", ["x"], ["y"])], {}, "Hardmax of operator set 11"),
    "per element norm": (
        7,
        [N("BatchNormalization", ["x", "a", "a", "a", "a"], ["y"], spatial=0)],
        {"a": np.ones((3, 8, 8), np.float32)},
        "operator set 7 cannot be lifted to 17",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_lifted_is_refused(case: str):
    opset, nodes, weights, said = REFUSED[case]
    with pytest.raises(UnsupportedError, match=said):
        load(build(nodes, weights, opset=opset))


def test_an_integer_constant_survives_as_what_it_was():
    indices = numpy_helper.from_array(np.array([2, 0]))
    model = load(build([N("Constant", [], ["i"], value=indices), N("Gather", ["x", "i"], ["y"], axis=1)], opset=9))
    x = rand(1, 3, 8, 8)
    assert_allclose(ort(model.float_bytes(), x)["y"], x[:, [2, 0]])


POOLS = [(op, k, s, p, side, include)
         for op, includes in (("MaxPool", (None,)), ("AveragePool", (0, 1)))
         for k, s, p, side in ((2, 2, 1, 7), (3, 3, 1, 6), (2, 3, 0, 7), (1, 2, 0, 6), (3, 2, 1, 8), (3, 2, 0, 7))
         for include in includes]  # fmt: skip


@pytest.mark.parametrize("op, k, s, p, side, include", POOLS)
def test_a_window_that_starts_behind_the_image_is_not_counted(op, k, s, p, side, include):
    """ONNX's shape inference counts it, ONNX Runtime does not; a layer behind the pool sees the right shape, too."""
    how = {} if include is None else {"count_include_pad": include}
    pool = N(op, ["x"], ["q"], kernel_shape=[k, k], strides=[s, s], pads=[p] * 4, ceil_mode=1, **how)
    x = rand(1, 3, side, side)
    model = build([pool, N("Conv", ["q", "w"], ["y"], pads=[1, 1, 1, 1])], {"w": W}, x.shape, outputs=("y", "q"))
    wanted, loaded = ort(model, x), load(model)
    got = ort(loaded.float_bytes(), x)
    for name, array in wanted.items():
        assert g.static_shape(g.values(loaded.ir)[name]) == array.shape
        assert_allclose(got[name], array, atol=BOUND, rtol=0)


def test_two_pools_in_a_row_and_a_shape_that_is_read_behind_them():
    how = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}
    nodes = [N("MaxPool", ["x"], ["a"], **how), N("MaxPool", ["a"], ["b"], **how), N("Shape", ["b"], ["s"]),
             N("Reshape", ["b", "s"], ["y"])]  # fmt: skip
    x = rand(1, 3, 9, 9)
    model = build(nodes, {}, x.shape)
    # Its optimizer computes Shape ahead, from the size that shape inference states.
    wanted, loaded = ort(model, x, optimize=False)["y"], load(model)
    assert g.static_shape(g.values(loaded.ir)["y"]) == wanted.shape
    assert np.array_equal(ort(loaded.float_bytes(), x)["y"], wanted)


def test_one_value_as_two_outputs_keeps_both_names():
    nodes = [N("Conv", ["x", "w"], ["c"]), N("Identity", ["c"], ["y"]), N("Identity", ["y"], ["z"]),
             N("Identity", ["x"], ["v"])]  # fmt: skip
    proto = build(nodes, {"w": rand(4, 3, 3, 3)}, outputs=["y", "z", "v"])
    x, model = rand(1, 3, 8, 8), load(proto)
    assert model.output_names == ("y", "z", "v")
    found = ort(model.float_bytes(), x)
    for name, wanted in ort(proto, x).items():
        assert_allclose(found[name], wanted, rtol=0, atol=0)


def test_a_cast_like_is_nothing_or_a_cast():
    nodes = [N("CastLike", ["k", "x"], ["a"]), N("Mul", ["x", "a"], ["m"]), N("Cast", ["m"], ["i"], to=7),
             N("CastLike", ["m", "i"], ["j"]), N("CastLike", ["j", "x"], ["f"]), N("Neg", ["f"], ["y"])]  # fmt: skip
    proto = build(nodes, {"k": 9 * rand(8)})
    model, x = load(proto), rand(1, 3, 8, 8)
    assert [n.op_type for n in g.nodes(model.ir)] == ["Mul", "Cast", "Cast", "Neg"]
    assert_allclose(ort(model.float_bytes(), x)["y"], ort(proto, x)["y"], rtol=0, atol=0)
