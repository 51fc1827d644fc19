"""Samples: what they promise about order, choice, content and memory; prefetch: order, bounds, errors, early exit."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from roadworthy.data import samples as module
from roadworthy.data.samples import Sample, Samples, prefetch
from roadworthy.detect.detections import Truth
from roadworthy.errors import InputError

Picture = Callable[..., Path]


def made(n: int, order: int = 1) -> Samples:
    """Generated samples, forwards or backwards."""
    return Samples(
        Sample(f"{i:03}", load=lambda i=i: np.full((4, 5, 3), i, np.uint8), key=f"flat {i}") for i in range(n)[::order]
    )


def test_it_is_a_sequence():
    samples = made(10)
    assert len(samples) == 10 and samples[3].name == "003" and samples[-1].image()[0, 0, 0] == 9
    assert [s.name for s in samples[2:8:3]] == ["002", "005"] and isinstance(samples[1:], Samples)
    assert [s.name for s in samples] == [f"{i:03}" for i in range(10)]
    with pytest.raises(AttributeError):
        samples.kind = "boxes"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        samples[0].label = 1


def test_take_is_seeded_nested_and_independent_of_listing_order():
    forwards, backwards = made(100), made(100, -1)
    chosen = [s.name for s in forwards.take(20, seed=5)]
    assert chosen == sorted(chosen) and len(set(chosen)) == 20
    assert chosen == [s.name for s in backwards.take(20, seed=5)][::-1]
    assert set(chosen) < {s.name for s in forwards.take(30, seed=5)}
    assert set(chosen) != {s.name for s in forwards.take(20, seed=6)}
    assert forwards.take(1000) is forwards
    with pytest.raises(InputError, match="at least 1"):
        forwards.take(0)


def test_take_favours_no_place():
    """Each of 40 samples should be in about half of 200 draws of 20: 100 +- 7.1 (binomial), 5 sigma allowed."""
    counts = np.zeros(40)
    for seed in range(200):
        for sample in made(40).take(20, seed):
            counts[int(sample.name)] += 1
    assert np.abs(counts - 100).max() < 36


def test_content_id_depends_on_content_only(tmp_path: Path, picture: Picture):
    def ids(folder: Path, seeds: tuple[int, int] = (1, 2), label: int = 0, reverse: bool = False) -> str:
        items = [
            Sample("a", picture(tmp_path / folder / "a.png", seed=seeds[0]), label=label),
            Sample("b", picture(tmp_path / folder / "b.png", seed=seeds[1]), label=1),
        ]
        return Samples(items[::-1] if reverse else items, "classes").content_id

    reference = ids(Path("one"))
    assert len(reference) == 64
    assert ids(Path("other")) == reference == ids(Path("other"), reverse=True)
    assert len({reference, ids(Path("x"), (1, 3)), ids(Path("y"), label=1), ids(Path("z"), (2, 1))}) == 4


def test_content_id_sees_each_part_of_the_truth_and_the_names():
    boxes = np.array([[1.0, 2, 3, 4]])

    def of(truth: Truth | None, names: tuple[str, ...] = ("car",)) -> str:
        sample = Sample("a", load=lambda: np.zeros((9, 9, 3), np.uint8), key="zero", truth=truth)
        return Samples([sample], "images", names).content_id

    variants = [
        of(None),
        of(Truth.of(boxes, [0])),  # type: ignore[arg-type]
        of(Truth.of(boxes + 1, [0])),  # type: ignore[arg-type]
        of(Truth.of(boxes, [1])),  # type: ignore[arg-type]
        of(Truth.of(boxes, [0], np.array([3.0]))),  # type: ignore[arg-type]
        of(Truth.of(boxes, [0], ignore=np.array([True]))),  # type: ignore[arg-type]
        of(Truth.of(boxes, [0]), ("bus",)),  # type: ignore[arg-type]
    ]
    assert len(set(variants)) == len(variants)


def test_content_id_reads_each_file_once(tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch):
    samples = Samples(Sample(str(i), picture(tmp_path / f"{i}.png", seed=i)) for i in range(4))
    read: list[Path] = []
    original = module._hash_file
    monkeypatch.setattr(module, "_hash_file", lambda path, into: (read.append(path), original(path, into)))
    assert samples.content_id == samples.content_id and samples[:2].content_id and len(read) == 4


def test_generated_samples():
    samples = made(3)
    assert samples.content_id == made(3).content_id != made(4).content_id
    with pytest.raises(ValueError, match="key"):
        Sample("a", load=lambda: np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="either"):
        Sample("a")
    wrong = Sample("odd", load=lambda: np.zeros((2, 2), np.uint8), key="k")
    with pytest.raises(InputError, match="odd"):
        wrong.image()


def test_truth_is_worked_out_once_and_late():
    calls: list[int] = []

    def work() -> Truth:
        calls.append(1)
        return Truth.of(np.zeros((0, 4)), np.zeros(0))

    sample = Sample("a", "a.png", truth=work)
    assert Samples([sample], "boxes")[0].has_truth and not calls
    assert sample.truth is sample.truth and len(calls) == 1


def test_refusals():
    a = Sample("a", "a.png", label=1)
    with pytest.raises(InputError, match="a is listed twice"):
        Samples([a, a])
    with pytest.raises(InputError, match="a has no label"):
        Samples([a], "boxes")
    with pytest.raises(InputError, match="b has no label"):
        Samples([a, Sample("b", "b.png")], "classes")


def test_grey_alpha_and_16_bit_images_become_bgr(tmp_path: Path):
    grey = np.random.default_rng(0).integers(0, 256, (6, 7), np.uint8)
    cases = {
        "grey": (grey, np.repeat(grey[..., None], 3, 2)),
        "alpha": (np.dstack([grey, grey // 2, grey // 3, 255 - grey]), np.dstack([grey, grey // 2, grey // 3])),
        "deep": (grey.astype(np.uint16) * 257, np.repeat(grey[..., None], 3, 2)),
    }
    for name, (pixels, expected) in cases.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
        image = Sample(name, tmp_path / f"{name}.png").image()
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, expected)


def test_an_image_of_another_size_than_its_labels_claim(tmp_path: Path, picture: Picture):
    file = picture(tmp_path / "a.png", 24, 32)
    assert Sample("a", file, declared_hw=(24, 32)).image().shape == (24, 32, 3)
    with pytest.raises(InputError, match=r"a\.png is 24x32 but its labels were made for 48x64"):
        Sample("a", file, declared_hw=(48, 64)).image()


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, picture: Picture):
    file = picture(tmp_path / "a.bmp", 400, 400)  # 480 kB
    samples = Samples(Sample(str(i), file) for i in range(60))
    samples[0].image()
    tracemalloc.start()
    for image in prefetch(samples, lambda s: s.image(), depth=2):
        assert image.shape == (400, 400, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 480_000  # files and images of 2 ahead, 1 in work, 1 in hand; 60 images would be 29 MB


def test_prefetch_keeps_order_with_many_workers():
    def slow_first(i: int) -> int:
        time.sleep(0.002 * (10 - i % 10))
        return i * i

    assert list(prefetch(range(40), slow_first, workers=8, depth=8)) == [i * i for i in range(40)]
    assert list(prefetch([], slow_first)) == []


def test_prefetch_runs_elsewhere_and_not_too_far_ahead():
    asked: list[int] = []
    threads: set[int] = set()

    def source():
        for i in range(50):
            asked.append(i)
            yield i

    def work(i: int) -> int:
        threads.add(threading.get_ident())
        return i

    for i in prefetch(source(), work, depth=3):
        assert len(asked) <= i + 1 + 3
    assert len(asked) == 50 and threads and threading.get_ident() not in threads


def test_prefetch_passes_errors_on_in_their_place():
    def work(i: int) -> int:
        if i == 5:
            raise InputError("image 5 is corrupt")
        return i

    seen: list[int] = []
    with pytest.raises(InputError, match="image 5"):
        for i in prefetch(range(100), work, workers=3):
            seen.append(i)
    assert seen == [0, 1, 2, 3, 4]


def test_prefetch_stops_on_early_exit():
    done: list[int] = []
    before = threading.active_count()
    results = prefetch(range(1000), lambda i: (time.sleep(0.03), done.append(i)), depth=4)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    finished = len(done)
    time.sleep(0.05)
    assert len(done) == finished <= 3  # the one handed out, the one in work, and one more if this thread was slow


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, roadworthy.data.readers, roadworthy.data.preprocess\n"
        "heavy = {'cv2', 'yaml', 'onnx', 'onnxruntime', 'torch', 'pycocotools'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
