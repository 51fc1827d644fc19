"""OpenVINO's own format (IR) in an ONNX envelope, so that models made by NNCF are measured like any other entry.

The envelope is an ONNX model of one Identity with the network's input; the IR's two files travel in its metadata.
`load` is a target of `roadworthy bench`'s library form: `openvino_ir:load`.
"""

from __future__ import annotations

import base64
import io
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from roadworthy.run.openvino import OpenVinoRunner

KEY = "openvino_ir"


def pack(model: Any, name: str, shape: Sequence[int]) -> tuple[bytes, int]:
    """An openvino.Model in its envelope, and the size of its two files in bytes."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(model, Path(folder) / "m.xml")  # NNCF's and OpenVINO's default: float constants as fp16
        size = sum((Path(folder) / n).stat().st_size for n in ("m.xml", "m.bin"))
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as archive:
            for file in ("m.xml", "m.bin"):
                archive.write(Path(folder) / file, file)
    value = onnx.helper.make_tensor_value_info(name, 1, list(shape))
    out = onnx.helper.make_tensor_value_info("envelope", 1, list(shape))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", [name], ["envelope"])], "ir", [value], [out])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(proto, {KEY: base64.b64encode(target.getvalue()).decode()})
    return proto.SerializeToString(), size


class IrRunner:
    """A compiled IR, configured as `roadworthy.run.openvino` configures ONNX files."""

    def __init__(self, data: bytes, threads: int) -> None:
        import openvino

        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                archive.extractall(folder)
            core = openvino.Core()
            model = core.read_model(Path(folder) / "m.xml")
            self._request = core.compile_model(model, "CPU", config).create_infer_request()
        self.input_names = tuple(p.get_any_name() for p in model.inputs)
        self.output_names = tuple(p.get_any_name() for p in model.outputs)

    def run(self, feeds: Mapping[str, NDArray], taps: Sequence[str] = ()) -> dict[str, NDArray]:
        self._request.infer(dict(feeds))
        return {n: np.array(self._request.get_tensor(n).data) for n in self.output_names}


def load(data: bytes, threads: int = 0) -> IrRunner | OpenVinoRunner:
    """The IR in an envelope; any other ONNX model as the target openvino loads it."""
    props = {p.key: p.value for p in onnx.load_model_from_string(data).metadata_props}
    if KEY not in props:
        return OpenVinoRunner(data, threads)
    return IrRunner(base64.b64decode(props[KEY]), threads)
