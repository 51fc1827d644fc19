"""Broken, foreign and damaged models: one clear sentence, and never an error of another type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_graphs import N, build, const, ort, rand
from roadworthy.errors import InputError, RoadworthyError, UnsupportedError
from roadworthy.model.model import load


def small() -> onnx.ModelProto:
    nodes = [
        N("Conv", ["x", "w", "b"], ["c"], name="stem"),
        N("Sigmoid", ["c"], ["s"]),
        N("Mul", ["c", "s"], ["m"]),
        const("to", np.array([1, -1])),
        N("Reshape", ["m", "to"], ["r"]),
        N("Gemm", ["r", "k"], ["y"], transB=1),
    ]
    return build(nodes, {"w": rand(4, 3, 3, 3), "b": rand(4), "k": rand(2, 144)})


def edited(change) -> onnx.ModelProto:
    proto = small()
    change(proto)
    return proto


def poison(proto: onnx.ModelProto) -> None:
    array = rand(4, 3, 3, 3).copy()
    array[0, 0, 0, 0], array[1, 1, 1, 1] = np.nan, np.inf
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w"))


def cycle(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "m"


def outside(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "weights.bin")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL


def second_input(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


BAD = {
    "NaN": (poison, InputError, "weight 'w' holds 2 values that are NaN or infinite"),
    "cycle": (cycle, InputError, "not a valid ONNX model"),
    "unknown operator": (
        lambda p: setattr(p.graph.node[0], "op_type", "Convolve"),
        UnsupportedError,
        "operator 'Convolve' .node 'stem'. does not exist in ONNX operator set 17",
    ),
    "custom domain": (
        lambda p: setattr(p.graph.node[0], "domain", "acme"),
        UnsupportedError,
        "'stem'.*custom domain 'acme'",
    ),
    "operator of a later set": (
        lambda p: setattr(p.graph.node[1], "op_type", "Gelu"),
        UnsupportedError,
        "'Gelu'.*operator set 17",
    ),
    "operator set of the future": (
        lambda p: setattr(p.opset_import[0], "version", 999),
        UnsupportedError,
        "operator set 999",
    ),
    "no output": (lambda p: p.graph.ClearField("output"), InputError, "no complete graph"),
    "no node": (lambda p: p.graph.ClearField("node"), InputError, "no complete graph"),
    "no input": (lambda p: p.graph.ClearField("input"), InputError, "input"),
    "two inputs": (second_input, InputError, "has 2 inputs .x, mask."),
    "integer input": (
        lambda p: setattr(p.graph.input[0].type.tensor_type, "elem_type", TensorProto.UINT8),
        UnsupportedError,
        "the input 'x' is uint8",
    ),
    "input without shape": (lambda p: p.graph.input[0].type.tensor_type.ClearField("shape"), InputError, "shape"),
    "weights elsewhere": (outside, InputError, "the data of 'w' is in another file; hand in the path"),
    "weights of another size": (lambda p: p.graph.initializer[0].dims.__setitem__(0, 5), InputError, "'w' is damaged"),
    "output nobody makes": (lambda p: setattr(p.graph.output[0], "name", "zzz"), InputError, "not a valid ONNX model"),
    "node without output": (lambda p: p.graph.node[1].ClearField("output"), RoadworthyError, "model"),
    "value made twice": (lambda p: p.graph.node[1].output.__setitem__(0, "c"), InputError, "not a valid ONNX model"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_sentence_says_what_is_wrong(case: str):
    change, kind, said = BAD[case]
    with pytest.raises(kind, match=said) as caught:
        load(edited(change))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_unknown_operators_are_found_in_branches_too():
    inner = helper.make_graph([N("Acme", ["x"], ["t"])], "then", [], [helper.make_tensor_value_info("t", 1, None)])
    other = helper.make_graph([N("Relu", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)])
    proto = build([N("If", ["c"], ["y"], then_branch=inner, else_branch=other)], {"c": np.array(True)})
    with pytest.raises(UnsupportedError, match="Acme"):
        load(proto)


@pytest.mark.parametrize("thing", [3, None, ["a"]])
def test_what_is_no_model_at_all(thing: object):
    with pytest.raises(InputError, match=r"a model is a path, bytes or an onnx\.ModelProto"):
        load(thing)


def test_files(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="is a directory"):
        load(tmp_path)
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(InputError, match="is an empty file"):
        load(tmp_path / "empty.onnx")
    for text in (b"\x89PNG\r\n", b"hello world\n" * 9, b"\0" * 64):
        (tmp_path / "no.onnx").write_bytes(text)
        with pytest.raises(InputError, match=r"no\.onnx is not an ONNX model"):
            load(tmp_path / "no.onnx")


def test_weights_beside_the_file_are_gathered_and_their_absence_is_said(tmp_path: Path):
    path = tmp_path / "model.onnx"
    onnx.save(small(), path, save_as_external_data=True, location="model.bin", size_threshold=0)
    x = rand(1, 3, 8, 8)
    np.testing.assert_array_equal(ort(load(path).float_bytes(), x)["y"], ort(load(small()).float_bytes(), x)["y"])
    (tmp_path / "model.bin").unlink()
    with pytest.raises(InputError, match=r"the weights beside .*model\.onnx cannot be read"):
        load(path)


def test_a_file_cut_short_anywhere():
    data = small().SerializeToString()
    for end in range(0, len(data), 41):
        with pytest.raises(RoadworthyError) as caught:
            load(data[:end])
        assert "\n" not in str(caught.value)


def test_flipped_bits_load_or_are_explained():
    data = small().SerializeToString()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(250):
        damaged = bytearray(data)
        for place in rng.integers(len(data), size=rng.integers(1, 4)):
            damaged[place] ^= 1 << int(rng.integers(8))
        try:
            load(bytes(damaged))
        except RoadworthyError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 500
    assert refused > 50  # the test has met damage, not only changed weights


@pytest.mark.parametrize("how", ["zip", "pickle", "program", "script"])
@pytest.mark.filterwarnings("ignore")
def test_a_pytorch_file_is_not_opened(how: str, tmp_path: Path):
    """Neither by its name nor by its content, whose pickle may run anything."""
    torch = pytest.importorskip("torch")
    path, module = tmp_path / "detector.pth", torch.nn.Conv2d(1, 1, 1)
    if how == "program":
        torch.export.save(torch.export.export(module, (torch.ones(1, 1, 2, 2),)), path)
    elif how == "script":
        torch.jit.save(torch.jit.script(module), path)
    else:
        torch.save(module, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(InputError, match=r"detector\.pth is a PyTorch file, .* roadworthy\.from_torch\(module, "):
        load(path)
