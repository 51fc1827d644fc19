"""Where the parameters of a PyTorch module lie in the graph that was made of it, so that weights go back.

One metadata entry, JSON: the module's name of a tensor -> how to get it,

    {"at": initializer, "perm": [1, 0], "shape": [16]}   that initializer, its axes put back, in the module's shape
    {"fill": 1.0, "shape": [16]}                         a number everywhere
    null                                                 it is part of another constant, and not to be had back

with "trained" for an `nn.Parameter`. "perm" maps the module's axes to the graph's: graph = module.transpose(perm). The
entry is made by `from_torch`, kept true by the fold of batch normalization, and travels in the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.model import Model

STATE_KEY = "roadworthy.state"
Note = dict[str, Any]


def trained(model: Model) -> frozenset[str]:
    """Names of the initializers that are parameters of the module that the graph was made of; empty without a note."""
    return frozenset(note["at"] for note in notes(model.ir).values() if note and "at" in note and note.get("trained"))


def to_state_dict(model: Model, strict: bool = True) -> dict[str, NDArray]:
    """The weights by the names of the module that `from_torch` was given, in its shapes, as arrays.

        module.load_state_dict({k: torch.from_numpy(v) for k, v in rw.to_state_dict(model).items()}, strict=False)

    strict: refuse when a tensor is not to be had back; otherwise it is left out. Counters such as
    `num_batches_tracked`, which no result depends on, are always left out, hence strict=False above. A batch
    normalization that was folded into its convolution comes back as one that only adds: the module computes the same.
    Raises InputError where the model does not come from `from_torch`, and for what is not to be had back, by name.
    """
    found = notes(model.ir)
    if not found:
        raise InputError(
            f"{model.source} does not say which weights belong to which parameter of a module; make it with"
            " roadworthy.from_torch"
        )
    values = g.values(model.ir)
    arrays = {name: _array(note, values) for name, note in found.items()}
    lost = [name for name, array in arrays.items() if array is None]
    if lost and strict:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise InputError(
            f"{', '.join(map(repr, lost[:3]))}{more} became part of other constants of the graph and cannot go back"
            " into the module; pass strict=False to leave such tensors out"
        )
    return {name: array for name, array in arrays.items() if array is not None}


def _array(note: Mapping[str, Any] | None, values: Mapping[str, g.Value]) -> NDArray | None:
    if note is None:
        return None
    shape = tuple(note["shape"])
    if "fill" in note:
        return np.full(shape, note["fill"], np.float32)
    array = g.constant(values.get(note["at"]))
    if array is None or array.size != np.prod(shape, dtype=int) or array.dtype.kind != "f":
        return None
    perm = note.get("perm")
    if perm is None:
        return np.array(array).reshape(shape)
    return np.array(array).reshape([shape[p] for p in perm]).transpose(np.argsort(perm)).copy()


def notes(ir: g.IrModel) -> dict[str, Note | None]:
    """The entry, read and checked; {} where the graph has none. Raises InputError where it is damaged."""
    text = g.metadata(ir).get(STATE_KEY)
    if text is None:
        return {}
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or not all(n is None or _is_note(n) for n in document.values()):
        raise InputError(f"the metadata entry `{STATE_KEY}` is damaged; remove it, or export the module again")
    return document


def set_notes(ir: g.IrModel, found: Mapping[str, Note | None]) -> None:
    """Write the entry, into a graph that was just made or cloned."""
    g.metadata(ir)[STATE_KEY] = json.dumps(found, separators=(",", ":"))


def _is_note(note: Any) -> bool:
    def whole(values: Any) -> bool:
        return isinstance(values, list) and all(isinstance(v, int) and 0 <= v < 2**31 for v in values)

    if not isinstance(note, dict) or not whole(note.get("shape")):
        return False
    if "perm" in note and (not whole(note["perm"]) or sorted(note["perm"]) != list(range(len(note["shape"])))):
        return False
    return isinstance(note.get("at"), str) or isinstance(note.get("fill"), int | float)


def folded(ir: g.IrModel, norm: g.Node, weight: str, bias: str | None, new_weight: str, new_bias: str) -> None:
    """A batch normalization has gone into the convolution in front of it: it comes back as one that adds the new bias.

    norm: the node.   weight, bias: names of the convolution's constants before, new_weight, new_bias: after.
    """
    found = notes(ir)
    if not found:
        return
    name_at = {note["at"]: name for name, note in found.items() if note and "at" in note}
    gamma, beta, mean, variance = (str(v.name) if v is not None else "" for v in norm.inputs[1:5])
    moved: dict[str, Note] = {
        weight: {"at": new_weight},
        beta: {"at": new_bias},
        gamma: {"fill": float(np.sqrt(1 + g.attribute(norm, "epsilon", 1e-5)))},
        mean: {"fill": 0.0},
        variance: {"fill": 1.0},
        **({bias: {"fill": 0.0}} if bias else {}),
    }
    for value, change in moved.items():
        name = name_at.get(value)
        if name is None:
            continue
        old = found[name] or {}
        kept = {k: v for k, v in old.items() if k == "shape" or (k in ("perm", "trained") and "at" in change)}
        found[name] = {**kept, **change} if _read_once(ir, value) and beta in name_at else None
    set_notes(ir, found)


def _read_once(ir: g.IrModel, name: str) -> bool:
    value = g.values(ir).get(name)
    return value is not None and len(list(value.uses())) == 1
