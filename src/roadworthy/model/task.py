"""`Task`: the contract around the graph. How an image becomes the input tensor, and how outputs become results.

It is plain data, written as YAML for people and as JSON into the ONNX metadata under `roadworthy.task`, so that it
travels with the model.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from roadworthy.data.preprocess import Preprocess
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError

METADATA_KEY = "roadworthy.task"
VERSION = 1


@dataclass(frozen=True)
class Task:
    """Preprocessing, decoding, and how they became known ("metadata", "given", "graph", "graph and measurement")."""

    preprocess: Preprocess
    decode: DecodeSpec
    how: str = "given"

    @property
    def is_detector(self) -> bool:
        return self.decode.kind not in ("classify", "raw")

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, or numbers where the contract has none."""
        return self.decode.class_names or tuple(str(k) for k in range(self.decode.num_classes))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML and JSON."""
        return {
            "version": VERSION,
            "preprocess": json.loads(json.dumps(asdict(self.preprocess))),
            "decode": json.loads(json.dumps(asdict(self.decode))),
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    def differences(self, other: Task) -> list[str]:
        """One line per field in which two contracts differ, as `decode.strides: (8, 16, 32) against (8, 16, 16)`.

        Class names are only words, and the operating threshold is each model's own: neither is a difference.
        """
        found = []
        for part in ("preprocess", "decode"):
            a, b = getattr(self, part), getattr(other, part)
            for field in fields(a):
                x, y = getattr(a, field.name), getattr(b, field.name)
                if x != y and field.name not in ("class_names", "score_threshold"):
                    found.append(f"{part}.{field.name}: {x} against {y}")
        return found


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def task_from_dict(document: Any, where: str, how: str = "given", base: Task | None = None) -> Task:
    """Validate plain values into a Task; missing fields come from `base` where one is given.

    where: what to call the document in an error.   Raises InputError naming the field at fault.
    """
    if not isinstance(document, dict):
        raise InputError(f"{where} must hold a mapping with `preprocess` and `decode`, not {type(document).__name__}")
    unknown = set(document) - {"version", "preprocess", "decode"}
    if unknown:
        raise InputError(f"{where} has the unknown key `{sorted(unknown)[0]}`; known are preprocess and decode")
    if document.get("version", VERSION) != VERSION:
        raise InputError(f"{where} is a task contract of version {document['version']}; this program reads {VERSION}")
    parts: dict[str, Any] = {}
    for part, kind in (("preprocess", Preprocess), ("decode", DecodeSpec)):
        given = document.get(part, {})
        if not isinstance(given, dict):
            raise InputError(f"`{part}` in {where} must be a mapping")
        known = {f.name for f in fields(kind)}
        wrong = set(given) - known
        if wrong:
            raise InputError(f"`{part}.{sorted(wrong)[0]}` in {where} is unknown; known are {', '.join(sorted(known))}")
        settings = {k: _tuples(v) for k, v in given.items()}
        try:
            parts[part] = replace(getattr(base, part), **settings) if base is not None else kind(**settings)
        except (TypeError, ValueError) as error:
            raise InputError(f"`{part}` in {where} is incomplete or wrong: {error}") from error
    _check_types(parts["decode"], where)
    return Task(parts["preprocess"], parts["decode"], how)


def _check_types(spec: DecodeSpec, where: str) -> None:
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(DecodeSpec).validate_python(asdict(spec))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(p) for p in first["loc"])
        raise InputError(f"`decode.{field}` in {where}: {first['msg'].lower()}") from error


def task_from_json(text: str, where: str) -> Task:
    """Read the contract saved in a model's metadata."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"the task contract in {where} is not JSON: {error}") from error
    return task_from_dict(document, f"the task contract in {where}", how="metadata")


def task_from_yaml(path: str | Path, base: Task | None = None) -> Task:
    """Read a contract from a YAML file; fields it leaves out come from `base`."""
    import yaml

    try:
        document = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the task file {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"the task file {path} is not YAML: {str(error).splitlines()[0]}") from error
    return task_from_dict(document, f"the task file {path}", base=base)
