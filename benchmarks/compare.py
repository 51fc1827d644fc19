"""Roadworthy beside the usual tools: the same images, the same measuring, interleaved.

    python benchmarks/compare.py MODEL DATA [--target auto] [--max-drop 0.5] [--out results.json]

Peers: ONNX Runtime's static quantization (per channel, its own preprocessing step, MinMax calibration, u8 activations
and s8 weights as its guide advises for x86) on ort, and NNCF's post-training quantization on openvino, with its preset
for networks without ReLU (MIXED) where the network is one (needs `pip install nncf`). All calibrate on the same 128
images. Accuracy is measured on the test images by this project's own evaluation, in the runtime named; speed by
`roadworthy bench`: processes of their own, interleaved, gated, ratio of medians to ONNX Runtime fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import openvino_ir
from roadworthy.check.accuracy import Predictions, agreement, predict, tensor_of
from roadworthy.check.bench import Entry, bench
from roadworthy.check.judge import Judge
from roadworthy.check.machine import environment
from roadworthy.data.readers import read
from roadworthy.jobs.compress import Settings, compress
from roadworthy.model.model import Model, load
from roadworthy.model.task import Task
from roadworthy.model.units import units
from roadworthy.run.targets import TARGETS

IMAGES = 128
IR = "openvino_ir:load"
# The workers that measure speed import openvino_ir, too.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])


def ort_static(model: Model, task: Task, samples: Any, folder: Path) -> bytes:
    """ONNX Runtime's own tool, as its documentation recommends it."""
    import onnxruntime.quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            self._rest = iter(samples)

        def get_next(self) -> dict[str, Any] | None:
            sample = next(self._rest, None)
            return None if sample is None else {model.input_name: tensor_of(sample, task)[0]}

    source, prepared, made = folder / "in.onnx", folder / "prepared.onnx", folder / "ort.onnx"
    source.write_bytes(model.float_bytes())
    quant_pre_process(str(source), str(prepared))
    q.quantize_static(str(prepared), str(made), Reader(), per_channel=True, activation_type=q.QuantType.QUInt8)
    return made.read_bytes()


def nncf_ptq(model: Model, task: Task, samples: Any, folder: Path) -> tuple[bytes, int] | None:
    """NNCF's post-training quantization of the OpenVINO model, with its defaults (on ONNX it does worse)."""
    try:
        import nncf
        import openvino
    except ImportError:
        return None
    network = openvino.Core().read_model(model=model.float_bytes())
    dataset = nncf.Dataset(list(samples), lambda s: {model.input_name: tensor_of(s, task)[0]})
    plain = all(u.activation in (None, "Relu", "Clip") for u in units(model.ir))
    preset = nncf.QuantizationPreset.PERFORMANCE if plain else nncf.QuantizationPreset.MIXED
    quantized = nncf.quantize(network, dataset, preset=preset, subset_size=len(samples))
    return openvino_ir.pack(quantized, model.input_name, model.input_shape)


def runner_of(target: str, data: bytes) -> Any:
    return openvino_ir.load(data) if target == IR else TARGETS[target].runner(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--target", default="auto")
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.monotonic()
        settings = Settings(target=options.target, max_drop=options.max_drop)
        outcome = compress(options.model, options.data, folder / "ours", settings)
        seconds = time.monotonic() - started
        ours = (folder / "ours" / "model.onnx").read_bytes()
        task = load(ours).task
        assert task is not None
        model = load(options.model).with_task(task)
        dataset = read(options.data)
        calibration = dataset.calibration.take(min(IMAGES, len(dataset.calibration)), 0)
        judge = Judge.of(task, dataset.test, lambda: TARGETS["ort"].runner(model.float_bytes()), options.max_drop)
        target = outcome.report["result"]["target"]
        sizes: dict[str, int] = {}
        candidates: dict[str, tuple[bytes, str]] = {
            "original": (model.float_bytes(), "ort"),
            "original on openvino": (model.float_bytes(), "openvino"),
            f"Roadworthy ({outcome.report['result']['variant']}) on {target}": (ours, target),
        }
        for label, tool, where in (("ORT static int8", ort_static, "ort"), ("NNCF int8", nncf_ptq, IR)):
            try:
                made = tool(model, task, calibration, folder)
            except Exception as error:
                print(f"{label} failed: {str(error).splitlines()[0][:150]}")
                continue
            if made is None:
                continue
            data, size = made if isinstance(made, tuple) else (made, len(made))
            sizes[f"{label} on openvino" if where == IR else f"{label} on {where}"] = size
            candidates[f"{label} on openvino" if where == IR else f"{label} on {where}"] = (data, where)
        rows: list[dict[str, Any]] = []
        result = bench([Entry(k, d, t) for k, (d, t) in candidates.items()], seconds=options.seconds)
        for label, (data, where) in candidates.items():
            found: Predictions = predict(runner_of(where, data), task, dataset.test)
            judged = judge(found)
            speed = result[label]
            rows.append(
                {
                    "what": label,
                    judged.metric: round(judged.value, 2),
                    "drop": round(judged.drop, 2),
                    "interval": [round(v, 2) for v in (lambda i: (i.low, i.high))(judge.interval(found, 0))],
                    "bytes": sizes.get(label, len(data)),
                    "median_ms": round(speed.runtime.median_ms, 3),
                    "ratio": round(speed.ratio, 3),
                    "agreement": {k: round(v, 2) for k, v in agreement(judge.original, found, task).items()},
                }
            )
    print(f"\n{Path(options.model).name}: compressed in {seconds:.0f} s; verdict {outcome.report['verdict']}")
    metric = "mAP" if task.is_detector else "top-1"
    print(f"| | {metric} | drop | 95 % interval | kB | ms | speed / ORT fp32 |\n|---|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["interval"]
        print(f"| {row['what']} | {row[metric]:.2f} | {row['drop']:+.2f} | {low:+.2f} to {high:+.2f} |"
              f" {row['bytes'] / 1000:.0f} | {row['median_ms']:.2f} | {row['ratio']:.2f} |")  # fmt: skip
    machine = environment(result.threads)
    print(f"\n{machine.get('cpu')}, {result.threads} threads; {machine.get('versions')}")
    for note in result.notes:
        print(f"note: {note}")
    if options.out:
        options.out.write_text(json.dumps({"rows": rows, "seconds": seconds, "environment": machine}, indent=1))


if __name__ == "__main__":
    main()
