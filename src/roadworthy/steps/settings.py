"""Settings of steps: what a field may hold, in one place for the recipe's reader and for Python.

Every step is `Checked`: it cannot be made with a setting that means nothing.
A field is a word, a number, a flag, a list of layer names (`tuple[str, ...]`) or a number for each of some layers
(`tuple[tuple[str, int], ...]`, in YAML a mapping). `choice` and `between` say which values are allowed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import Field, field, fields
from numbers import Integral, Real
from typing import Any, get_type_hints

from roadworthy.errors import InputError
from roadworthy.model.model import Model
from roadworthy.model.task import Task
from roadworthy.model.units import units

WEIGHT_OBSERVERS = ("minmax", "mse", "l3")
GRANULARITIES = ("channel", "tensor")
SCALES = ("free", "power_of_two")
NAMES = tuple[str, ...]
NUMBERS = tuple[tuple[str, int], ...]


def choice(default: str, allowed: Iterable[str]) -> Any:
    """A field that holds one of some words."""
    return field(default=default, metadata={"allowed": tuple(allowed)})


def one_of(default: int, allowed: Iterable[int]) -> Any:
    """A field that holds one of some whole numbers."""
    return field(default=default, metadata={"allowed": tuple(allowed)})


def between(default: Any, least: float, most: float) -> Any:
    """A field that holds numbers (or numbers for layers) from least to most."""
    return field(default=default, metadata={"least": least, "most": most})


def task_of(model: Model, what: str) -> Task:
    """The task of a model.   what: that needs it, for whoever has not settled it yet (InputError)."""
    if model.task is None:
        raise InputError(
            f"{what} needs the task of the model; rw.settle(model, dataset) finds it (on the command line --task gives"
            " it)"
        )
    return model.task


def known_layers(model: Model, names: Sequence[str]) -> None:
    """Raises InputError for a name that no layer of the model has."""
    known = {u.name for u in units(model.ir)}
    for name in names:
        if name not in known:
            raise InputError(
                f"the recipe names the layer {name!r}, which the model does not have; was it made for another?"
            )


def read_settings(kind: type[Any], settings: dict[str, Any], step: str, where: str) -> Any:
    """A step from the plain values of a YAML file.   step: its name there.   where: what to call the file.

    Raises InputError naming the setting at fault.
    """
    known: dict[str, Field[Any]] = {f.name: f for f in fields(kind)}
    hints = get_type_hints(kind)
    made = {}
    for key, value in settings.items():
        if key not in known:
            raise InputError(f"`{step}.{key}` in {where} is unknown; known are {', '.join(known) or 'none'}")
        told = f"`{step}.{key}` in {where}"
        made[key] = _typed(value, hints[key], told)
        _within(made[key], known[key], told)
    return kind(**made)


def check_settings(step: Any) -> None:
    """Raises InputError naming the setting of a step, made in Python, that holds what it must not."""
    hints = get_type_hints(type(step))
    for known in fields(step):
        value, told = getattr(step, known.name), f"`{type(step).__name__}.{known.name}`"
        _of_kind(value, hints[known.name], told)
        _within(value, known, told)


class Checked:
    """A step whose settings are checked when it is made, from YAML as in Python."""

    def __post_init__(self) -> None:
        check_settings(self)


def plain(value: Any) -> Any:
    """A setting as YAML writes it: pairs as a mapping, tuples as lists."""
    if isinstance(value, tuple) and value and all(isinstance(v, tuple) for v in value):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _typed(value: Any, hint: Any, told: str) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if hint == NAMES:
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise InputError(f"{told} must be a list of layer names")
        return tuple(value)
    if hint == NUMBERS:
        numbers = isinstance(value, dict) and all(
            isinstance(k, str) and isinstance(v, int) and not isinstance(v, bool) for k, v in value.items()
        )
        if not numbers:
            raise InputError(f"{told} must map names to whole numbers, as in `{{conv1: 5}}`")
        return tuple(value.items())
    if hint is bool and not isinstance(value, bool):
        raise InputError(f"{told} must be true or false")
    if hint is int and not whole:
        raise InputError(f"{told} must be a whole number")
    if hint is float:
        if isinstance(value, str):  # 1e-4 is a word to YAML 1.1, which wants 1.0e-4
            with contextlib.suppress(ValueError):
                return float(value)
        if not whole and not isinstance(value, float):
            raise InputError(f"{told} must be a number")
        return float(value)
    if hint is str and not isinstance(value, str):
        raise InputError(f"{told} must be a word")
    return value


def _of_kind(value: Any, hint: Any, told: str) -> None:
    """As `_typed`, for a value that Python made."""
    if hint == NAMES:
        if not isinstance(value, tuple) or not all(isinstance(v, str) for v in value):
            raise InputError(f'{told} must be a tuple of layer names, as in ("conv1",)')
    elif hint == NUMBERS:
        if not isinstance(value, tuple) or not all(_is_pair(v) for v in value):
            raise InputError(f'{told} must be a tuple of names with whole numbers, as in (("conv1", 5),)')
    elif hint is bool:
        if not isinstance(value, bool):
            raise InputError(f"{told} must be True or False")
    elif hint is int or hint is float:
        if isinstance(value, bool) or not isinstance(value, Integral if hint is int else Real):
            raise InputError(f"{told} must be a {'whole ' if hint is int else ''}number")
    elif hint is str and not isinstance(value, str):
        raise InputError(f"{told} must be a word")


def _is_pair(value: Any) -> bool:
    whole = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Integral)
    return whole and isinstance(value[0], str) and not isinstance(value[1], bool)


def _within(value: Any, known: Field[Any], told: str) -> None:
    allowed = known.metadata.get("allowed")
    if allowed is not None and value not in allowed:
        raise InputError(f"{told} is {value!r}; known are {', '.join(map(str, allowed))}")
    if "least" in known.metadata:
        least, most = known.metadata["least"], known.metadata["most"]
        for number in [v for _, v in value] if isinstance(value, tuple) else [value]:
            if not least <= number <= most:
                raise InputError(f"{told} is {number:g}; give numbers from {least:g} to {most:g}")
