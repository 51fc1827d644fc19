"""From a file to a checked ModelProto. What cannot be read or compressed is refused here by name, in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx

from roadworthy.errors import InputError, UnsupportedError
from roadworthy.model.lift import opset_of

_DOMAINS = {"", "ai.onnx", "com.microsoft", "ai.onnx.ml"}


def load_bytes(path: str | Path) -> bytes:
    """A file's bytes, with external weights gathered into the model.

    Raises InputError when the path is missing, a directory or unreadable.
    """
    file = Path(path)
    name = str(path)
    if not file.exists():
        raise InputError(f"the model {name} does not exist")
    if file.is_dir():
        raise InputError(f"the model {name} is a directory; hand in an .onnx file")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"the model {name} cannot be read: {error.strerror}") from error
    if not data:
        raise InputError(f"the model {name} is an empty file; export it again")
    proto = read_proto(data, name)
    if any(t.data_location == onnx.TensorProto.EXTERNAL for _, t in _tensors(proto.graph)):
        try:
            return onnx.load(name).SerializeToString()
        except Exception as error:
            raise InputError(f"the weights beside {name} cannot be read: {one_line(error)}") from error
    return data


PLAN = b"RWPL"
"""How a plan of the native engine begins (docs/engine.md)."""


def _is_pytorch(data: bytes) -> bool:
    """Whether these are bytes of torch.save or torch.export.save: a zip with a pickle in it, or a bare pickle."""
    if data[:4] == b"PK\x03\x04":
        return any(name in data[:4096] or name in data[-4096:] for name in (b"data.pkl", b".data/serialization_id"))
    return data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def read_proto(data: bytes, where: str) -> onnx.ModelProto:
    """Parse and check serialized ONNX.

    where: what to call it in an error.   Raises InputError for bytes that are not a complete, valid ONNX model,
    UnsupportedError for an operator that no known operator set has.
    """
    if data[:4] == PLAN:
        raise InputError(f"{where} is a native plan, which keeps no graph; hand in the ONNX file it was made from")
    if _is_pytorch(data):
        raise InputError(
            f"{where} is a PyTorch file, which is not opened because its pickle can run any code; load it into its"
            " module in Python and save roadworthy.from_torch(module, (1, 3, height, width)).float_bytes() as .onnx"
        )
    try:
        proto = onnx.load_model_from_string(data)
    except Exception as error:
        raise InputError(
            f"{where} is not an ONNX model, or is cut short: it cannot be parsed; export it again"
        ) from error
    if not proto.graph.node or not proto.graph.output or not proto.ir_version:
        raise InputError(f"{where} is not an ONNX model, or is cut short: it holds no complete graph; export it again")
    return proto


def check_proto(proto: onnx.ModelProto, where: str) -> None:
    """Refuse what cannot be compressed, by name: unknown operators, broken structure, NaN weights, external data."""
    version = opset_of(proto)
    if not 0 < version <= onnx.defs.onnx_opset_version():
        raise UnsupportedError(
            f"{where} is of ONNX operator set {version}; 1 to {onnx.defs.onnx_opset_version()} are known here,"
            " export it with an older one"
        )
    _check_operators(proto, where, version)
    for name, tensor in _tensors(proto.graph):
        _check_tensor(name, tensor, where)
    try:
        onnx.checker.check_model(_with_output_shapes(proto))
    except Exception as error:
        raise InputError(f"{where} is not a valid ONNX model: {one_line(error)}") from error
    for value in proto.graph.input:
        kind = value.type.tensor_type.elem_type
        if kind != onnx.TensorProto.FLOAT and value.name not in {t.name for t in proto.graph.initializer}:
            found = onnx.TensorProto.DataType.Name(kind).lower() if kind else "something other than a tensor"
            raise UnsupportedError(
                f"{where}: the input {value.name!r} is {found}; export the model with a float32 image as its input"
            )


def _check_operators(proto: onnx.ModelProto, where: str, version: int) -> None:
    functions = {(f.domain, f.name) for f in proto.functions}
    bodies = [n for f in proto.functions for n in f.node]
    for node in (*_nodes(proto.graph.node), *_nodes(bodies)):
        called = f"operator {node.op_type!r} (node {node.name or (node.output or ['without output'])[0]!r})"
        if not isinstance(node.op_type, str) or not isinstance(node.domain, str):  # protobuf's way to say: not UTF-8
            raise InputError(f"{where} is damaged: the name of an operator is not text; export the model again")
        if (node.domain, node.op_type) in functions:
            continue
        if node.domain not in _DOMAINS:
            raise UnsupportedError(
                f"{where}: {called} is of the custom domain {node.domain!r}; rewrite it with standard operators"
            )
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type, max_inclusive_version=version):
            raise UnsupportedError(
                f"{where}: {called} does not exist in ONNX operator set {version};"
                " rewrite it with standard operators, or correct the operator set"
            )


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """All nodes, those inside branches and loops included."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """All constants, as initializers or as attributes, with a name to call them by."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in _nodes(graph.node):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield (node.output or [node.name])[0], attribute.t
            for inner in (attribute.g, *attribute.graphs):
                yield from ((t.name, t) for t in inner.initializer)


def _check_tensor(name: str, tensor: onnx.TensorProto, where: str) -> None:
    name = str(name)[:80]
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise InputError(f"{where}: the data of {name!r} is in another file; hand in the path instead of bytes")
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except Exception as error:
        raise InputError(
            f"{where}: the weight {name!r} is damaged ({one_line(error)}); export the model again"
        ) from error
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        # A constant of the graph may be infinite on purpose (a mask, a bound); a weight may not.
        if array.size == 1 and not np.isnan(array).any():
            return
        raise InputError(
            f"{where}: the weight {name!r} holds {bad} value{'s'[: bad != 1]} that {'is' if bad == 1 else 'are'} NaN or"
            " infinite; export the model from a checkpoint that trained without overflow"
        )


def one_line(error: Exception, most: int = 200) -> str:
    """What a library said, short enough to stand inside a sentence."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else text[: most - 3] + "..."


def _with_output_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The checker insists on a shape for every output, which runtimes do not; it never reads what the shape says."""
    if all(v.type.tensor_type.HasField("shape") for v in proto.graph.output):
        return proto
    shaped = onnx.ModelProto()
    shaped.CopyFrom(proto)
    for value in shaped.graph.output:
        if not value.type.WhichOneof("value"):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    return shaped
