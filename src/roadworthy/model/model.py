"""`Model`: an ONNX graph, the encodings beside it, its task, and the history of steps. A value: steps make new ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

from roadworthy.errors import InputError, RoadworthyError
from roadworthy.model import graph as g
from roadworthy.model.canonical import canonicalize
from roadworthy.model.encoding import Encoding
from roadworthy.model.read import check_proto, load_bytes, one_line, read_proto
from roadworthy.model.task import METADATA_KEY, Task, task_from_json

_FINGERPRINTS: WeakKeyDictionary[g.IrModel, str] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Model:
    """A float graph in canonical form with facts beside it.

    ir: the graph; never edited in place.   encodings: value name -> Encoding; dropping a key un-quantizes that value.
    task: the contract, or None while it is not known.   history: one line per step that made this model.
    source: where it came from.   sha256: of the bytes that were read.   size: their number.
    """

    ir: g.IrModel
    encodings: Mapping[str, Encoding] = field(default_factory=lambda: MappingProxyType({}))
    task: Task | None = None
    history: tuple[str, ...] = ()
    source: str = "model"
    sha256: str = ""
    size: int = 0

    def with_encodings(self, encodings: Mapping[str, Encoding], step: str) -> Model:
        """The same graph with other encodings."""
        return replace(self, encodings=MappingProxyType(dict(encodings)), history=(*self.history, step))

    def with_ir(self, ir: g.IrModel, step: str) -> Model:
        return replace(self, ir=ir, history=(*self.history, step))

    def with_task(self, task: Task) -> Model:
        return replace(self, task=task)

    @property
    def input_name(self) -> str:
        return str(g.inputs(self.ir)[0].name)

    @property
    def input_shape(self) -> tuple[int, ...]:
        shape = g.static_shape(g.inputs(self.ir)[0])
        assert shape is not None
        return shape

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(str(v.name) for v in g.outputs(self.ir))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the float graph; worked out once per graph, as graphs do not change."""
        known = _FINGERPRINTS.get(self.ir)
        if known is None:
            known = _FINGERPRINTS[self.ir] = hashlib.sha256(self.float_bytes()).hexdigest()
        return known

    def float_bytes(self) -> bytes:
        """The float graph, serialized; encodings are left out."""
        return g.to_bytes(self.ir)


def load(
    source: str | Path | bytes | Any,
    task: Task | None = None,
    input_hw: tuple[int, int] | None = None,
) -> Model:
    """Load an ONNX model from a path, bytes or a ModelProto and bring it into canonical form.

    task: the contract; None takes the one saved in the metadata, if there is one.
    input_hw: size in pixels for a model whose input size is dynamic.
    Raises InputError or UnsupportedError with one sentence naming what is wrong.
    """
    if isinstance(source, str | Path):
        data, where = load_bytes(source), str(source)
    elif isinstance(source, bytes):
        data, where = source, "the model"
    elif hasattr(source, "SerializeToString") and hasattr(source, "graph"):
        try:
            data, where = source.SerializeToString(), "the model"
        except Exception as error:
            raise InputError(f"the model cannot be serialized: {one_line(error)}") from error
    else:
        raise InputError(f"a model is a path, bytes or an onnx.ModelProto, not {type(source).__name__}")
    proto = read_proto(data, where)
    try:
        check_proto(proto, where)
        _check_one_input(proto, where)
        ir = canonicalize(proto, where, input_hw)
    except RoadworthyError:
        raise
    except Exception as error:  # a damaged file that the checker lets pass can fail anywhere
        raise InputError(f"{where} cannot be understood ({one_line(error)}); export the model again") from error
    saved = next((p.value for p in proto.metadata_props if p.key == METADATA_KEY), None)
    if task is None and saved is not None:
        task = task_from_json(saved, where)
    return Model(ir=ir, task=task, source=where, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def _check_one_input(proto: Any, where: str) -> None:
    weights = {t.name for t in proto.graph.initializer}
    names = [v.name for v in proto.graph.input if v.name not in weights]
    if len(names) != 1:
        listed = f" ({', '.join(names[:4])})" if names else ""
        raise InputError(f"{where} has {len(names)} inputs{listed}; a model with one image input is needed")
