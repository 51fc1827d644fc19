"""The native engine beside the usual runtimes, one and two threads: latency, whole frames, accuracy.

    python benchmarks/native.py MODEL DATA [--threads 1 2] [--seconds 20] [--frames] [--no-accuracy] [--out FILE]

Ours: what `compress --target native` makes, calibrated on at most 128 images, all layers in int8 unless notes say
otherwise; and the original in float on the native engine. Peers, in the same run, interleaved, each in a process of
its own: ONNX Runtime fp32, OpenVINO with its default precision (bf16 where the CPU has it), NNCF's int8 on OpenVINO,
ONNX Runtime's static int8. `speed / ORT fp32` is a ratio of medians over undisturbed samples.
With --frames every entry is also timed from decoded BGR image to detections: the peers with OpenCV and NumPy around
them (`data/preprocess.py`, `detect/decode.py`), ours in one call.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from compare import IMAGES, IR, nncf_ptq, ort_static, runner_of
from roadworthy.check.accuracy import predict
from roadworthy.check.bench import Entry, bench
from roadworthy.check.contract import settle_task
from roadworthy.check.judge import Judge
from roadworthy.check.machine import environment
from roadworthy.data.readers import read
from roadworthy.jobs.search import Search
from roadworthy.jobs.trial import Ui
from roadworthy.model.model import load
from roadworthy.run.targets import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--task")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--frames", action="store_true")
    parser.add_argument("--no-accuracy", action="store_true")
    parser.add_argument("--no-peers", action="store_true", help="only ONNX Runtime fp32 and ours")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration images")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    dataset = read(options.data)
    model = load(options.model)
    original = model.float_bytes()
    task, _ = settle_task(model, dataset, options.task, lambda: TARGETS["ort"].runner(original), 0)
    model = model.with_task(task)
    calibration = dataset.calibration.take(min(IMAGES, len(dataset.calibration)), 0)
    judge = Judge.of(task, dataset.test, lambda: TARGETS["ort"].runner(original), 0.5)
    search = Search(
        model, task, dataset.calibration, judge, "native", "normal", options.seed, 0, Ui(), lambda _, __, work: work()
    )
    plain = search.plain_int8()
    assert plain is not None
    best = search.improved(plain)
    print("int8 as compress makes it:", "; ".join(f"{t.name}: {t.why}" for t in search.trials) or "nothing added")
    ours = best.data
    candidates: dict[str, tuple[bytes, str]] = {
        "ORT fp32": (original, "ort"),
        "native int8": (ours, "native"),
        "native fp32": (original, "native"),
    }
    if not options.no_peers:
        candidates["OpenVINO default"] = (original, "openvino")
        with tempfile.TemporaryDirectory() as name:
            for label, tool, where in (("ORT static int8", ort_static, "ort"), ("NNCF int8", nncf_ptq, IR)):
                made = tool(model, task, calibration, Path(name))
                if made is not None:
                    candidates[label] = (made[0] if isinstance(made, tuple) else made, where)
    rows: list[dict[str, Any]] = []
    frames = [s.image() for s in dataset.test[:8]] if options.frames else []
    for threads in options.threads:
        entries = [
            Entry(k, d, t, frames, task.preprocess if frames else None, task.decode if frames else None)
            for k, (d, t) in candidates.items()
        ]
        result = bench(entries, threads=threads, seconds=options.seconds)
        print(f"\n{threads} thread(s){'' if result.quiet else ', NOT QUIET'}")
        print("| | ms | speed / ORT fp32 | quartiles | frame ms | frame / ORT fp32 | load ms |")
        print("|---|---|---|---|---|---|---|")
        for label in candidates:
            m = result[label]
            spread = "-".join(f"{v:.2f}" for v in m.ratio_spread) if m.ratio_spread else ""
            frame = f"{m.end_to_end.median_ms:.2f} | {m.end_to_end_ratio:.2f}" if m.end_to_end else "|"
            print(f"| {label} | {m.runtime.median_ms:.3f} | {m.ratio:.2f} | {spread} | {frame} | {m.load_ms:.0f} |")
        rows += [{"threads": threads, "quiet": result.quiet, **row} for row in result.rows()]
        for note in result.notes:
            print(f"note: {note}")
    if not options.no_accuracy:
        print(f"\n| | {judge.metric} | drop | 95 % interval |\n|---|---|---|---|")
        for label, (data, where) in candidates.items():
            found = predict(runner_of(where, data), task, dataset.test)
            judged, interval = judge(found), judge.interval(found, 0)
            print(
                f"| {label} | {judged.value:.2f} | {judged.drop:+.2f} | {interval.low:+.2f} to {interval.high:+.2f} |"
            )
            rows.append({"label": label, "metric": judged.metric, "value": judged.value, "drop": judged.drop})
    machine = environment(max(options.threads))
    print(f"\n{machine.get('cpu')}; {machine.get('versions')}")
    if options.out:
        options.out.write_text(json.dumps({"rows": rows, "environment": machine}, indent=1))


if __name__ == "__main__":
    main()
