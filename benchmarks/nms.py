"""NMS against OpenCV's `cv2.dnn.NMSBoxes` and the NumPy version, on clustered boxes, with identical sets kept.

    python benchmarks/nms.py [--boxes 1000 5000 20000] [--seconds 2]

The three run in turns, a sample each, so that they meet the same moments of the machine; the figures are medians of one
thread. OpenCV decides in another rounding: it drops a box where

    1.f - float(1.0 - iou) > float(threshold)        iou in double

which is monotone in iou, so there is one double threshold at which `nms` decides exactly as OpenCV does with its own;
it is found by bisection, and the kept sets are then compared with ==.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from roadworthy.detect.nms import _native, nms, nms_numpy


def clustered(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes around 1 object for each 50 boxes, as the raw candidates of a detector lie: (N, 4) xyxy and (N,) scores."""
    rng = np.random.default_rng(seed)
    objects = max(count // 50, 1)
    centre = rng.uniform(0, 1920, (objects, 2))
    size = np.exp(rng.uniform(np.log(20), np.log(300), (objects, 2)))
    which = rng.integers(0, objects, count)
    at = centre[which] + rng.normal(0, 0.08, (count, 2)) * size[which]
    half = size[which] * np.exp(rng.normal(0, 0.1, (count, 2))) / 2
    boxes = np.concatenate([at - half, at + half], axis=1).astype(np.float32)
    return boxes, rng.uniform(0.01, 1, count).astype(np.float32)


def threshold_of_opencv(threshold: float) -> float:
    """The largest IoU that OpenCV does not drop at this threshold."""
    limit = np.float32(threshold)

    def drops(iou: float) -> bool:
        return bool(np.float32(1) - np.float32(1.0 - iou) > limit)

    low, high = threshold - 1e-6, threshold + 1e-6
    while np.nextafter(low, high) < high:
        middle = (low + high) / 2
        low, high = (low, middle) if drops(middle) else (middle, high)
    return low


def measure(ways: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each, in turns; each turn repeats the fast ones until a millisecond has passed."""
    repeats = {}
    for name, way in ways.items():
        way()
        start = time.perf_counter()
        way()
        repeats[name] = max(1, int(0.001 / (time.perf_counter() - start)))
    samples: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(samples.values()))) < 5:
        for name, way in ways.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                way()
            samples[name].append((time.perf_counter() - start) / repeats[name] * 1e3)
    return {name: float(np.median(values)) for name, values in samples.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, nargs="+", default=[1000, 5000, 20000])
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=20, help="sets of boxes compared for each size")
    options = parser.parse_args()
    if _native is None:
        print("error: the native module is not built; `make native` builds it", file=sys.stderr)
        return 2
    cv2.setNumThreads(1)
    exact = threshold_of_opencv(options.threshold)
    print("| boxes | kept | roadworthy ms | cv2.dnn.NMSBoxes ms | NumPy ms | over cv2 | over NumPy |")
    print("|---|---|---|---|---|---|---|")
    for count in options.boxes:
        for seed in range(options.seeds):
            boxes, scores = clustered(count, seed)
            sides = boxes.astype(np.float64)
            sides[:, 2:] -= sides[:, :2]
            theirs = cv2.dnn.NMSBoxes(sides, scores, 0.0, options.threshold)
            ours = nms(boxes, scores, None, exact)
            if not np.array_equal(np.asarray(theirs).reshape(-1), ours):
                print(f"error: {count} boxes, seed {seed}: the kept sets differ", file=sys.stderr)
                return 1
        ways: dict[str, Callable[[], object]] = {
            "ours": lambda b=boxes, s=scores: nms(b, s, None, exact),  # type: ignore[misc]
            "cv2": lambda b=sides, s=scores: cv2.dnn.NMSBoxes(b, s, 0.0, options.threshold),  # type: ignore[misc]
            "numpy": lambda b=boxes, s=scores: nms_numpy(b, s, None, exact),  # type: ignore[misc]
        }
        ms = measure(ways, options.seconds)
        row = f"| {count} | {len(ours)} | {ms['ours']:.4f} | {ms['cv2']:.3f} | {ms['numpy']:.3f} "
        print(row + f"| {ms['cv2'] / ms['ours']:.1f} | {ms['numpy'] / ms['ours']:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
