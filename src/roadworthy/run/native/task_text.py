"""The task as the text section of a plan: lines `key<TAB>value`, as native/detect/task.h describes and reads them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from roadworthy.data.preprocess import Preprocess
from roadworthy.detect.spec import DecodeSpec

NAMES = ("outputs", "class_names")
ESCAPES = (("\\", "\\\\"), (";", "\\;"), ("\t", "\\t"), ("\n", "\\n"))


def task_text(preprocess: Preprocess, decode: DecodeSpec) -> str:
    """One line for every field of both."""
    parts = [(f.name, getattr(part, f.name)) for part in (preprocess, decode) for f in fields(part)]
    return "".join(f"{key}\t{_value(key, value)}\n" for key, value in parts)


def _value(key: str, value: Any) -> str:
    if key == "anchors":
        return ";".join(" ".join(_value("", side) for pair in level for side in pair) for level in value)
    if key in NAMES:
        return ";".join(_escaped(name) for name in value)
    if isinstance(value, tuple):
        return " ".join(_value("", item) for item in value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, str):
        return value
    return repr(value.item() if hasattr(value, "item") else value)


def _escaped(name: str) -> str:
    for char, written in ESCAPES:
        name = name.replace(char, written)
    return name
