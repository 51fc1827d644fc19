"""The task as the text section of a plan: lines `key<TAB>value`, as native/detect/task.h reads them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from roadworthy.errors import InputError
from roadworthy.model.task import Task, task_from_json

_NAMES = ("class_names", "outputs")


FIXED = "arithmetic\tfixed\n"
"""The line of a plan whose arithmetic is fixed-point; the float form has none."""


def is_fixed(text: str) -> bool:
    """Whether the text section of a plan says that it computes in fixed point."""
    return FIXED.rstrip("\n") in text.split("\n")


def task_text(task: Task | None) -> str:
    """One line per field of Preprocess and DecodeSpec, and `task_json` with all of it; empty without a task."""
    if task is None:
        return ""
    lines = [f"{f.name}\t{_value(f.name, getattr(part, f.name))}\n" for part in (task.preprocess, task.decode)
             for f in fields(part)]  # fmt: skip
    return "".join(lines) + f"task_json\t{task.to_json()}\n"


def task_of(text: str, where: str) -> Task:
    """The task in the text section of a plan. Raises InputError where it holds none."""
    for line in text.split("\n"):
        key, _, value = line.partition("\t")
        if key == "task_json":
            return task_from_json(value, where)
    raise InputError(f"{where} holds no task; write it again from a model that carries one")


def _value(key: str, value: Any) -> str:
    if key in _NAMES:
        return ";".join(_escaped(str(name)) for name in value)
    if key == "anchors":
        return ";".join(" ".join(repr(float(side)) for pair in level for side in pair) for level in value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, tuple):
        return " ".join(repr(v) for v in value)
    return value if isinstance(value, str) else repr(value)


def _escaped(name: str) -> str:
    for plain, written in (("\\", "\\\\"), (";", "\\;"), ("\t", "\\t"), ("\n", "\\n")):
        name = name.replace(plain, written)
    return name
