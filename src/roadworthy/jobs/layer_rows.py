"""The report's layer table, and what the bytes of a file are."""

from __future__ import annotations

from typing import Any

import onnx

from roadworthy.check.accuracy import tensor_of
from roadworthy.check.align import align
from roadworthy.data.samples import Samples
from roadworthy.jobs.trial import Trial
from roadworthy.model.model import Model, load
from roadworthy.model.task import Task
from roadworthy.model.units import units
from roadworthy.recipe import Quantize, Recipe, StoreWeights

ALIGN_IMAGES = 4
EXACT_DB = 149.0
"""From here up `align` says that two tensors are equal; there is no noise to show."""


def placement_of(model: Model) -> dict[str, str]:
    """Unit name -> "int8", "int8 storage" or "float"."""
    found = {}
    for unit in units(model.ir):
        encoding = model.encodings.get(str(unit.weight.name))
        found[unit.name] = "float" if encoding is None else "int8 storage" if encoding.storage else "int8"
    return found


def layer_rows(
    model: Model, best: Trial, calibration: Samples, task: Task, costs: dict[str, dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the layer table, and what the alignment found fault with.

    Compared with the float network as it was rewritten before anything was rounded: scales that were moved from one
    layer to the next are no faults. What was trained is compared with what it was made from, and nothing is called a
    fault: layers that differ, and make up for each other, are what it learned.
    """
    places = placement_of(best.model)
    tensors = [tensor_of(s, task)[0] for s in calibration.take(min(ALIGN_IMAGES, len(calibration)), 0)]
    exact = rewritten(best.start or model, best.recipe.untrained, calibration).with_encodings({}, "in float")
    alignment = align(exact, load(best.data, task=task), tensors)
    rows = alignment.rows()
    keys = ("name", "op", "output", "shape", "sqnr_db", "local_sqnr_db", "cosine", "max_error")
    found = []
    for row in rows:
        kept = {k: row.get(k) for k in keys}
        cost = costs.get(str(row["name"]))
        if cost is not None:
            kept["macs"], kept["parameters"] = cost["macs"], cost["parameters"]
        if (kept["local_sqnr_db"] or 0.0) >= EXACT_DB:
            kept["local_sqnr_db"] = None
        kept["placement"] = places.get(str(row["name"]), None)
        found.append(kept)
    faults = [] if best.recipe.training is not None else alignment.findings[:5]
    return found, [f.text for f in faults]


def rewritten(model: Model, recipe: Recipe, calibration: Samples) -> Model:
    """The float network in front of the step that rounds."""
    chosen = recipe.choose(calibration, model)
    for step in recipe.steps:
        if isinstance(step, Quantize | StoreWeights):
            break
        model = step(model, chosen)
    return model


def parts_of(trial: Trial) -> dict[str, int]:
    """The parts of what is shipped."""
    if trial.deployed is trial.data:
        return parts_of_file(trial.data)
    from roadworthy.run.native.plan import Op, Plan

    parts = {"weights": 0, "biases, scales, tables": 0}
    seen: set[bytes] = set()  # equal constants are stored once
    for op in Plan.from_bytes(trial.deployed).ops:
        for k, blob in enumerate(map(bytes, op.blobs)):
            if blob not in seen:
                weights = k == 0 and op.code in (Op.CONV, Op.DEPTHWISE)
                parts["weights" if weights else "biases, scales, tables"] += len(blob)
                seen.add(blob)
    parts["graph"] = len(trial.deployed) - sum(parts.values())
    return {k: v for k, v in parts.items() if v}


def parts_of_file(data: bytes) -> dict[str, int]:
    """What the bytes of a file are: weights by type, scales, and the rest."""
    proto = onnx.load_model_from_string(data)
    parts = {"int8 codes": 0, "int16 codes": 0, "biases (int32)": 0, "float weights": 0}
    kinds = {
        onnx.TensorProto.INT8: "int8 codes", onnx.TensorProto.UINT8: "int8 codes",
        onnx.TensorProto.INT16: "int16 codes", onnx.TensorProto.INT32: "biases (int32)",
        onnx.TensorProto.FLOAT: "float weights",
    }  # fmt: skip
    for tensor in proto.graph.initializer:
        kind = kinds.get(tensor.data_type)
        if kind is not None:
            parts["scales" if tensor.name.startswith("s/") else kind] = (
                parts.get("scales" if tensor.name.startswith("s/") else kind, 0)
                + onnx.numpy_helper.to_array(tensor).nbytes
            )
    parts["graph"] = len(data) - sum(parts.values())
    return {k: int(v) for k, v in parts.items() if v}
