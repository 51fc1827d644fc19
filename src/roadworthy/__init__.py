"""Roadworthy: compress a trained vision model, prove that it still agrees with the original, and ship it.

    import roadworthy as rw

    outcome = rw.compress("yolox_nano.onnx", "coco/data.yaml", "small", rw.Settings(max_drop=0.5))
    print(outcome.report["verdict"], outcome.exit_code)

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Settings": "jobs.compress", "compress": "jobs.compress", "Outcome": "jobs.compress",
    "FinetuneSettings": "jobs.finetune", "finetune": "jobs.finetune",
    "load": "model.model", "Model": "model.model", "Encoding": "model.encoding", "QuantSpec": "model.encoding",
    "from_torch": "model.from_torch", "to_state_dict": "model.state",
    "Task": "model.task", "Preprocess": "data.preprocess", "DecodeSpec": "detect.spec",
    "Detections": "detect.detections", "Truth": "detect.detections",
    "Sample": "data.samples", "Samples": "data.samples", "Dataset": "data.dataset", "read": "data.readers",
    "Recipe": "recipe", "Fold": "recipe", "Quantize": "recipe", "StoreWeights": "recipe", "CorrectBias": "recipe",
    "Equalize": "recipe", "Smooth": "recipe", "Round": "recipe", "SetThreshold": "recipe", "Finetune": "recipe",
    "to_qdq": "model.qdq", "from_qdq": "model.qdq", "TARGETS": "run.targets", "lower": "run.native.lower",
    "Detector": "run.native.detector",
    "settle": "check.contract", "align": "check.align", "bench": "check.bench", "inspect": "check.inspect",
    "RoadworthyError": "errors", "InputError": "errors", "UnsupportedError": "errors", "MissingExtraError": "errors",
}  # fmt: skip

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'roadworthy' has no attribute {name!r}")
    return getattr(import_module(f"roadworthy.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
