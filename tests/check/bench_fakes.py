"""Runners for the benchmark's tests, loaded in its workers as `bench_fakes:name`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from roadworthy.errors import UnsupportedError


class Fake:
    """Calls a function per frame."""

    def __init__(self, frame: Callable[[dict], object]) -> None:
        self.frame = frame

    def run(self, feeds, taps=()):
        value = self.frame(feeds)
        return value if isinstance(value, dict) else {"y": np.zeros(1, np.float32)}


def two_ms(model, threads):
    return Fake(lambda feeds: time.sleep(0.002))


def six_ms(model, threads):
    return Fake(lambda feeds: time.sleep(0.006))


def chatty(model, threads):
    print("loading")

    def frame(feeds):
        print("a frame")
        os.write(1, b"\x00\x01 straight to the descriptor\n")

    return Fake(frame)


def refuses(model, threads):
    raise UnsupportedError("there is no operator Frobnicate here")


def stumbles(model, threads):
    return Fake(lambda feeds: {}["missing"])


def dies(model, threads):
    def frame(feeds):
        os.write(2, b"about to fall\n")
        os.kill(os.getpid(), signal.SIGSEGV)

    return Fake(frame)


def hangs(model, threads):
    return Fake(lambda feeds: time.sleep(600))


def hangs_and_tells(model, threads):
    """Writes its process id beside those of the others, then never returns from its first frame."""
    Path(os.environ["BENCH_TEST_PIDS"], str(os.getpid())).touch()
    return hangs(model, threads)


def hungry(model, threads):
    """Takes 150 MB for any model but that of one node, which the benchmark loads to know the runtime's own share."""
    held = np.ones(150_000_000 if len(model) > 1000 else 1, np.uint8)
    return Fake(lambda feeds: held[0])


def boxes(model, threads):
    """A YOLOX of 64x64 input pixels and 3 classes that sees one object; it checks what it is fed."""
    output = np.zeros((1, 8 * 8 + 4 * 4 + 2 * 2, 8), np.float32)
    output[0, 27, 4:6] = 0.9

    def frame(feeds):
        if len(model) > 1000:
            (tensor,) = feeds.values()
            assert tensor.shape == (1, 3, 64, 64) and tensor.dtype == np.float32
            assert 90 < tensor.max() <= 114  # an image, or the border of one
        time.sleep(0.002)
        return {"y": output}

    return Fake(frame)


def logits(model, threads):
    return Fake(lambda feeds: {"y": np.float32([[1.0, 3.0, 2.0]])})
