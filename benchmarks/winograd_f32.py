"""The float Winograd kernels against ONNX Runtime's float convolution: 3x3, stride 1, with Relu, one thread, in turns.

    python benchmarks/winograd_f32.py BUILD/native/tests/f32_bench

Prints effective GFLOP/s (those of the direct sum), best times of alternating rounds.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

SHAPES = [(64, 104), (64, 52), (128, 52), (128, 26), (256, 26), (256, 13), (512, 13)]  # channels, size


def session(channels: int, size: int) -> ort.InferenceSession:
    """A convolution of one node with its Relu (which ONNX Runtime fuses)."""
    random = np.random.default_rng(0)
    w = numpy_helper.from_array(random.normal(0, 0.1, (channels, channels, 3, 3)).astype(np.float32), "w")
    b = numpy_helper.from_array(random.normal(0, 0.1, channels).astype(np.float32), "b")
    shape = [1, channels, size, size]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    model = helper.make_model(
        helper.make_graph(nodes, "conv", [x], [y], [w, b]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def best_seconds(runner: ort.InferenceSession, channels: int, size: int) -> float:
    x = np.random.default_rng(1).normal(size=(1, channels, size, size)).astype(np.float32)
    times = []
    for _ in range(40):
        begin = time.perf_counter()
        runner.run(None, {"x": x})
        times.append(time.perf_counter() - begin)
    return min(times)


def main(program: str) -> None:
    ours: dict[tuple[int, int, int], float] = {}
    peer: dict[tuple[int, int], float] = {}
    runners = {shape: session(*shape) for shape in SHAPES}
    for _ in range(3):
        text = subprocess.run([program, "avx512vnni", "winograd"], capture_output=True, text=True, check=True).stdout
        for tile, channels, size, speed in re.findall(r"winograd (\d) +(\d+)->\d+ +@(\d+).*?([\d.]+) GFLOP", text):
            key = int(tile), int(channels), int(size)
            ours[key] = max(ours.get(key, 0.0), float(speed))
        for (channels, size), runner in runners.items():
            speed = 18 * channels**2 * size**2 / best_seconds(runner, channels, size) / 1e9
            peer[channels, size] = max(peer.get((channels, size), 0.0), speed)
    for channels, size in SHAPES:
        two, four, other = ours[2, channels, size], ours[4, channels, size], peer[channels, size]
        speeds = f"F(2x2) {two:4.0f}, F(4x4) {four:4.0f}, ONNX Runtime {other:4.0f} GFLOP/s"
        print(f"{channels:4d} at {size:3d}: {speeds}; the better one is {max(two, four) / other:.2f} times as fast")


if __name__ == "__main__":
    main(sys.argv[1])
