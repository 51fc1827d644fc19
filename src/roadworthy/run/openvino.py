"""OpenVINO on the CPU; the only file that imports it. Without the extra `openvino` installed, loading says so."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import MissingExtraError, UnsupportedError


def available() -> bool:
    """Whether OpenVINO is installed; does not import it."""
    return importlib.util.find_spec("openvino") is not None


def _core() -> Any:
    if not available():
        raise MissingExtraError(
            "the target openvino needs OpenVINO: install it with `pip install 'roadworthy[openvino]'`"
        )
    os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
    import openvino

    return openvino.Core()


class OpenVinoRunner:
    """A compiled model; taps are read by adding outputs to a second compilation, made once per set of taps.

    precision: None for the runtime's own default (bf16 on CPUs that have it), or "f32".
    """

    def __init__(self, model: bytes, threads: int = 0, precision: str | None = None) -> None:
        self._core = _core()
        self._model = model
        self._config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if threads:
            self._config["INFERENCE_NUM_THREADS"] = threads
        if precision:
            self._config["INFERENCE_PRECISION_HINT"] = precision
        self._request, self.input_names, self.output_names = self._compile(())
        self._taps: dict[frozenset[str], Any] = {}

    def _compile(self, taps: Sequence[str]) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
        try:
            graph = self._core.read_model(model=self._model)
            outputs = [self._name(o) for o in graph.outputs]
            if taps:
                graph.add_outputs(list(taps))
            compiled = self._core.compile_model(graph, "CPU", self._config)
        except Exception as error:
            for tap in taps:
                if tap in str(error):
                    raise KeyError(tap) from error
            raise UnsupportedError(f"OpenVINO cannot load the model: {_last_line(error)}") from error
        return compiled.create_infer_request(), tuple(self._name(i) for i in graph.inputs), tuple(outputs)

    @staticmethod
    def _name(port: Any) -> str:
        return sorted(port.get_names())[0] if len(port.get_names()) == 1 else port.get_any_name()

    def run(self, feeds: Mapping[str, NDArray], taps: Sequence[str] = ()) -> dict[str, NDArray]:
        wanted = [t for t in taps if t not in feeds]
        request = self._request
        if wanted:
            key = frozenset(wanted)
            if key not in self._taps:
                self._taps = {key: self._compile(sorted(key))[0]}
            request = self._taps[key]
        try:
            request.infer(dict(feeds))
        except Exception as error:
            raise UnsupportedError(f"OpenVINO cannot run the model: {_last_line(error)}") from error
        result = {n: np.array(request.get_tensor(n).data) for n in self.output_names}
        for tap in taps:
            result[tap] = feeds[tap] if tap in feeds else np.array(request.get_tensor(tap).data)
        return result


def _last_line(error: Exception) -> str:
    """OpenVINO says where it failed first, and what failed last."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]


def load(model: bytes, threads: int = 0) -> OpenVinoRunner:
    """Load a serialized ONNX model. Raises MissingExtraError without OpenVINO, UnsupportedError where it refuses."""
    return OpenVinoRunner(model, threads)
