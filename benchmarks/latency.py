"""Latency of ONNX files on targets, side by side, as a Markdown table with the machine it was measured on.

    python benchmarks/latency.py model.onnx model_int8.onnx --target ort --target openvino --threads 2
    python benchmarks/latency.py model.onnx --images photos/ --task task.yaml --json latency.json

Every file runs on every target; the first file on the first target is the baseline of the ratios (2.0 is twice as
fast). With --images the time from decoded image to detections is measured as well; the task contract comes from the
file's metadata, or from --task. --repeat measures everything again and shows how far the ratios move.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import onnx

from roadworthy.check.bench import BenchResult, Entry, bench
from roadworthy.data.readers import read
from roadworthy.errors import InputError, RoadworthyError
from roadworthy.model.task import METADATA_KEY, Task, task_from_json, task_from_yaml

COLUMNS: dict[str, str] = {
    "label": "model (target)", "ratio": "speed", "ratio_spread": "quartiles", "median_ms": "median ms",
    "p90_ms": "p90 ms", "qps": "frames/s", "end_to_end_ms": "end to end ms", "end_to_end_ratio": "speed end to end",
    "load_ms": "load ms", "peak_mb": "peak MB", "base_mb": "of it runtime MB", "file_bytes": "file MB",
    "samples": "samples", "dropped": "dropped",
}  # fmt: skip
DIGITS = {"ratio": 2, "end_to_end_ratio": 2, "median_ms": 2, "p90_ms": 2, "end_to_end_ms": 2, "file_bytes": 2}


def main() -> int:
    options = parse()
    try:
        entries = make_entries(options)
        results = []
        for _ in range(options.repeat):
            result = bench(
                entries,
                threads=options.threads,
                seconds=options.seconds,
                quick=options.quick,
                progress=show if sys.stderr.isatty() else None,
            )
            results.append(result)
            print(markdown(result))
    except RoadworthyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if len(results) > 1:
        print("ratios of the repetitions:")
        for number, entry in enumerate(results[0].entries):
            ratios = ", ".join(f"{result.entries[number].ratio:.3f}" for result in results)
            print(f"- {entry.label}: {ratios}")
    if options.json:
        options.json.write_text(json.dumps([result.to_json() for result in results], indent=1) + "\n")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="ONNX files")
    parser.add_argument("--target", action="append", help="ort, openvino or package.module:function; may be repeated")
    parser.add_argument("--threads", type=int, help="default: every usable core")
    parser.add_argument("--seconds", type=float, help="time to measure in (default 7, quick 2.5)")
    parser.add_argument("--quick", action="store_true", help="about four seconds, with a wider spread")
    parser.add_argument("--repeat", type=int, default=1, help="measure so many times")
    parser.add_argument("--images", help="data set or folder whose first 8 test images serve for end to end")
    parser.add_argument("--task", type=Path, help="task contract as YAML, for files whose metadata carry none")
    parser.add_argument("--json", type=Path, help="write all figures here")
    return parser.parse_args()


def make_entries(options: argparse.Namespace) -> list[Entry]:
    frames = [sample.image() for sample in read(options.images).test[:8]] if options.images else []
    entries = []
    for path in options.models:
        try:
            model = path.read_bytes()
        except OSError as error:
            raise InputError(f"the model {path} cannot be read: {error.strerror}") from error
        task = task_of(path, model, options.task) if frames else None
        for target in options.target or ["ort"]:
            label = f"{path.stem} ({target})"
            if task is None:
                entries.append(Entry(label, model, target))
            else:
                entries.append(Entry(label, model, target, frames, task.preprocess, task.decode))
    return entries


def task_of(path: Path, model: bytes, given: Path | None) -> Task:
    if given is not None:
        return task_from_yaml(given)
    try:
        saved = {item.key: item.value for item in onnx.load_model_from_string(model).metadata_props}
    except Exception as error:
        raise InputError(f"{path} is not an ONNX model; give the path of an .onnx file") from error
    if METADATA_KEY not in saved:
        raise InputError(f"{path} carries no task contract, which end to end needs; give one with --task")
    return task_from_json(saved[METADATA_KEY], str(path))


def show(fraction: float, text: str) -> None:
    print(f"\r{100 * fraction:3.0f} % {text:<60}", end="" if fraction < 1 else "\n", file=sys.stderr)


def markdown(result: BenchResult) -> str:
    """The table, what it was measured on, and what a reader must know."""
    rows = result.rows()
    columns = [key for key in COLUMNS if any(row[key] is not None for row in rows)]
    lines = ["| " + " | ".join(COLUMNS[key] for key in columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(key, row[key]) for key in columns) + " |" for row in rows]
    facts = result.environment
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    isa = " ".join(name for name in facts["isa"] if name.startswith(("avx", "amx", "asimd", "i8mm", "sve")))
    lines += [
        "",
        f"{facts['cpu']} ({isa}), {facts['cores']} cores, {result.threads} threads; {versions}; "
        f"{result.rounds} rounds in {result.seconds:.0f} s, canary {result.canary['reference_gflops']:.0f} GFLOP/s "
        f"per thread (median {result.canary['median_gflops']:.0f}).",
        *(f"Note: {note}." for note in result.notes),
        "",
    ]
    return "\n".join(lines)


def cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key == "ratio_spread":
        return f"{value[0]:.2f} to {value[1]:.2f}"
    if key == "file_bytes":
        value = value / 1e6
    return f"{value:.{DIGITS.get(key, 0)}f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
