"""`NativeRunner`: a plan, or an ONNX file that is lowered to one, on Roadworthy's own engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import InputError, MissingExtraError, UnsupportedError
from roadworthy.model.model import Model
from roadworthy.model.model import load as load_model
from roadworthy.model.qdq import from_qdq, has_qdq
from roadworthy.run.arithmetic import Arithmetic
from roadworthy.run.native.lower import lower
from roadworthy.run.native.plan import MAGIC, Plan
from roadworthy.run.native.task_text import is_fixed


def engine() -> Any:
    """The compiled module. Raises MissingExtraError where the package was built without it."""
    try:
        from roadworthy import _native
    except ImportError as error:
        raise MissingExtraError(
            "the native engine is missing, as no C++ compiler was found when Roadworthy was installed; install one "
            "(Debian: `apt install g++`), then Roadworthy again (`pip install --force-reinstall --no-deps roadworthy`)"
        ) from error
    return _native


def session(plan: bytes, threads: int = 0, **options: Any) -> Any:
    """A session of the engine. Raises InputError for a plan that it refuses.   options: see `_native.Session`."""
    try:
        return engine().Session(plan, threads, **options)
    except ValueError as error:
        raise InputError(str(error)) from error


def check_isa() -> None:
    """Raises InputError where ROADWORTHY_ISA names an instruction set that this CPU or this build does not have."""
    wanted = os.environ.get("ROADWORTHY_ISA")
    if wanted and wanted not in engine().isas():
        session(b"")  # options are checked first, so this says which there are


def _sentence(threads: int, options: dict[str, Any]) -> str:
    """What is said to an empty plan: options are checked before it, so a fault of theirs is the same sentence."""
    try:
        session(b"", threads, **options)
    except InputError as error:
        return str(error)
    return ""


class NativeRunner:
    """Runs a plan; taps are read by lowering the model again with these values as further outputs, once per set.

    session: the engine's, with `profile`, `arena_bytes`, `weight_bytes`, `isa`.   notes: layers in float, and why
    (empty for a plan from a file, which does not say).
    """

    def __init__(
        self, source: bytes | Model, threads: int = 0, arithmetic: Arithmetic = "float", **options: Any
    ) -> None:
        """source: the bytes of a plan or of an ONNX file (float, or with Q/DQ nodes), or a model with its encodings.

        arithmetic: what a model is lowered to; a plan says for itself which it has.
        """
        self._threads, self._arithmetic = threads, arithmetic
        self._options = options
        self._model = _model(source) if isinstance(source, Model) or not is_plan(source) else None
        self.notes: tuple[str, ...] = ()
        if self._model is None:
            assert isinstance(source, bytes)
            data = source
        else:
            plan = lower(self._model, arithmetic=arithmetic)
            self.notes = plan.notes
            data = plan.to_bytes()
        self._data = data
        try:
            self.session = session(data, threads, **options)
        except InputError as error:
            if self._model is None or _sentence(threads, options) == str(error):
                raise
            raise UnsupportedError(f"the native engine cannot run {self._model.source}: {error}") from error
        self.input_names: tuple[str, ...] = tuple(name for name, _ in self.session.inputs)
        self.output_names: tuple[str, ...] = tuple(name for name, _ in self.session.outputs)
        self._tapped: tuple[frozenset[str], Any] = (frozenset(), self.session)

    def run(self, feeds: Mapping[str, NDArray], taps: Sequence[str] = ()) -> dict[str, NDArray]:
        """Outputs, then taps, as float32. Raises KeyError for a tap that is no value, InputError for wrong inputs."""
        inputs = [self._input(feeds, name) for name in self.input_names]
        if not taps:  # the common call, kept short: it counts in networks that take a millisecond
            try:
                return dict(zip(self.output_names, self.session.run(inputs)))
            except (ValueError, TypeError) as error:
                raise InputError(str(error)) from error
        wanted = frozenset(t for t in taps if t not in feeds)
        chosen = self._with(wanted) if wanted else self.session
        try:
            arrays = chosen.run(inputs)
        except (ValueError, TypeError) as error:
            raise InputError(str(error)) from error
        found = dict(zip((name for name, _ in chosen.outputs), arrays))
        result = {name: found[name] for name in self.output_names}
        result.update({t: feeds[t] if t in feeds else found[t] for t in taps})
        return result

    def from_image(self) -> Callable[[NDArray[np.uint8]], Any] | None:
        """The function from a BGR image to its detections or class probabilities in one call; None where the model
        carries no task by which that is possible."""
        from roadworthy.run.native.detector import Detector

        try:
            made = Detector(self._data, self._threads)
        except InputError:
            return None
        kind = made.task.decode.kind
        return None if kind == "raw" else made.classify if kind == "classify" else made.detect

    def _input(self, feeds: Mapping[str, NDArray], name: str) -> NDArray[np.float32]:
        if name not in feeds:
            raise InputError(f"the input {name!r} is missing; the model needs {', '.join(self.input_names)}")
        return np.ascontiguousarray(feeds[name], np.float32)

    def _with(self, taps: frozenset[str]) -> Any:
        """A session that returns these values too. One set at a time is kept: callers walk a graph with one set."""
        if self._tapped[0] == taps:
            return self._tapped[1]
        if self._model is None:
            raise UnsupportedError("a plan file keeps no inner values; load the ONNX file to look at them")
        try:
            plan = lower(self._model, tap=sorted(taps - set(self.output_names)), arithmetic=self._arithmetic)
        except InputError as error:
            raise KeyError(str(error)) from error
        self._tapped = taps, session(plan.to_bytes(), self._threads, **self._options)
        return self._tapped[1]


def _model(source: bytes | Model) -> Model:
    model = source if isinstance(source, Model) else load_model(source)
    return from_qdq(model) if has_qdq(model) else model


def is_plan(data: bytes) -> bool:
    """Whether these are the bytes of a plan."""
    return data[:4] == MAGIC


def plan_of(source: bytes, arithmetic: Arithmetic = "float") -> bytes:
    """The plan of an ONNX file (float, or with Q/DQ nodes); a plan is given back as it is.

    Raises InputError for a plan of the float form where fixed point is wanted.
    """
    if not is_plan(source):
        return lower(_model(source), arithmetic=arithmetic).to_bytes()
    if arithmetic == "fixed" and not is_fixed(Plan.from_bytes(source).text):
        raise InputError("the plan computes with float multipliers; give the ONNX file, or use the target native")
    return source


def float_layers(source: bytes) -> tuple[str, ...]:
    """One line per weighted layer of an ONNX file that the engine computes in float, and why."""
    return lower(_model(source)).notes


def load(model: bytes, threads: int = 0, arithmetic: Arithmetic = "float") -> NativeRunner:
    """Load a plan or a serialized ONNX model. Raises MissingExtraError without the engine, UnsupportedError by name."""
    if is_plan(model):
        return NativeRunner(plan_of(model, arithmetic), threads, arithmetic)
    return NativeRunner(model, threads, arithmetic)
