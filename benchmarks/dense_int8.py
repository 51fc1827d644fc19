"""Dense int8 3x3 convolutions, layer by layer: the native engine against OpenVINO's int8, on one thread.

    python benchmarks/dense_int8.py [--rounds 30]

For every shape a network of three convolutions with ReLU is quantized for each target, so that the middle one reads and
writes codes on both. OpenVINO's figure is that of its own performance counters for the middle layer, ours that of
`Session.profile`; both are taken in turn, round by round, and compared by the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse

import numpy as np
import openvino
from onnx import TensorProto, helper, numpy_helper

from roadworthy.check.machine import environment
from roadworthy.data.preprocess import Preprocess
from roadworthy.data.samples import Sample, Samples
from roadworthy.detect.spec import DecodeSpec
from roadworthy.model.model import load
from roadworthy.model.qdq import to_qdq
from roadworthy.model.task import Task
from roadworthy.recipe import Fold, Quantize, Recipe
from roadworthy.run.native.runner import NativeRunner, engine

SHAPES = [(16, 104), (32, 104), (64, 104), (64, 52), (128, 52), (128, 26), (256, 26), (256, 13), (512, 13)]


def network(channels: int, side: int, rng: np.random.Generator) -> bytes:
    nodes, weights, last = [], [], "x"
    for k, (before, after) in enumerate([(3, channels), (channels, channels), (channels, channels), (channels, 8)]):
        w = rng.normal(0, (2 / (9 * before)) ** 0.5, (after, before, 3, 3)).astype(np.float32)
        weights += [numpy_helper.from_array(w, f"w{k}"), numpy_helper.from_array(np.zeros(after, np.float32), f"b{k}")]
        nodes += [
            helper.make_node("Conv", [last, f"w{k}", f"b{k}"], [f"c{k}"], name=f"conv{k}", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{k}"], [f"r{k}"], name=f"relu{k}"),
        ]
        last = f"r{k}"
    graph = helper.make_graph(
        nodes, "three", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, 8, side, side])], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


def openvino_us(request: openvino.InferRequest, x: np.ndarray) -> float:
    """Microseconds of the second layer; the first and the last reorder their values."""
    request.infer({"x": x})
    layers = [p for p in request.get_profiling_info() if p.node_type == "Convolution" and "conv1" in p.node_name]
    assert len(layers) == 1 and "i8" in layers[0].exec_type.lower(), [(p.node_name, p.exec_type) for p in layers]
    return float(layers[0].real_time.total_seconds() * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    rng = np.random.default_rng(0)
    print(
        "| channels | side | native us | OpenVINO us | native / OpenVINO speed | quartiles | native at best, of peak |"
    )
    print("|---|---|---|---|---|---|---|")
    for channels, side in SHAPES:
        task = Task(Preprocess((side, side), resize="stretch", color="rgb", scale=1 / 255), DecodeSpec("raw"), "given")
        images = [rng.integers(0, 256, (side, side, 3)).astype(np.uint8) for _ in range(8)]
        samples = Samples(
            tuple(Sample(f"{k}", load=lambda image=i: image, key=f"{side}.{k}") for k, i in enumerate(images))  # type: ignore[misc]
        )
        model = load(network(channels, side, rng)).with_task(task)
        made = {t: Recipe((Fold(), Quantize(t)), 8, 0).apply(model, samples) for t in ("openvino", "native")}
        core = openvino.Core()
        config = {"INFERENCE_NUM_THREADS": 1, "PERF_COUNT": True, "PERFORMANCE_HINT": "LATENCY"}
        compiled = core.compile_model(core.read_model(model=to_qdq(made["openvino"])), "CPU", config)
        request, session = compiled.create_infer_request(), NativeRunner(made["native"], 1).session
        x = task.preprocess(images[0])[0]
        ours, theirs, peak = [], [], 0.0
        for _ in range(rounds):
            theirs.append(float(np.median([openvino_us(request, x) for _ in range(10)])))
            ours.append(next(row[2] for row in session.profile([x], 10) if row[0] == "conv1") / 1e3)
            peak = max(peak, engine().peak_gops("", 5.0)[0])
        ratio = np.array(theirs) / np.array(ours)
        low, middle, high = np.percentile(ratio, [25, 50, 75])
        us = float(np.median(ours))
        share = 2 * 9 * channels**2 * side**2 / min(ours) / 1e3 / peak
        print(f"| {channels} | {side} | {us:.1f} | {np.median(theirs):.1f} | {middle:.2f} | {low:.2f}-{high:.2f} |"
              f" {share:.2f} |", flush=True)  # fmt: skip
    print(f"\n{environment(1).get('cpu')}; {environment(1).get('versions')}")


if __name__ == "__main__":
    main()
