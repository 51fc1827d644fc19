"""The example of docs/bridge.md runs as it stands, and what comes out of it fits the module that went in."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from roadworthy.data.street import scene
from roadworthy.model.model import load
from roadworthy.model.qdq import from_qdq
from roadworthy.model.state import to_state_dict
from roadworthy.run.ort import OrtRunner

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
DOCS = Path(__file__).parents[1] / "docs" / "bridge.md"


def test_the_example_runs(tmp_path: Path, monkeypatch):
    (tmp_path / "images").mkdir()
    for k in range(48):
        cv2.imwrite(str(tmp_path / "images" / f"{k}.png"), cv2.resize(scene(k)[0], (64, 64)))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict = {}
    torch.manual_seed(0)
    exec(compile(code, str(DOCS), "exec"), names)
    small, module, x = names["small"], names["module"].eval(), np.ones((1, 3, 32, 32), np.float32) / 3
    assert small.encodings and small.history[-1].startswith("finetune")
    # The module has the trained float weights, batch normalizations and all: what the small model's float graph says.
    (wanted,) = OrtRunner(small.float_bytes(), 1).run({small.input_name: x}).values()
    with torch.no_grad():
        found = module(torch.from_numpy(x)).numpy()
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    # And the file is the same network with its rounding.
    read = load(tmp_path / "small.onnx")
    assert read.task is not None and not read.task.differences(names["task"])
    rounded = to_state_dict(from_qdq(read))
    assert rounded.keys() == names["weights"].keys()
    for name in ("0.weight", "3.weight", "8.weight"):  # half a step: 1/254 of the largest, more where steps are trained
        array = names["weights"][name]
        assert 0 < np.abs(rounded[name] - array).max() <= np.abs(array).max() / 100, name
