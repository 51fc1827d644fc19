"""The C API: what it gives is what Python gets, and every failure is a code and a sentence."""

from __future__ import annotations

import ctypes as c
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from random_graphs import random_int8_model
from roadworthy.run.native.lower import lower
from roadworthy.run.reference import ReferenceRunner

_native = pytest.importorskip("roadworthy._native", reason="needs the compiled engine (make native)")
from c_api import ERROR, MOST, OK, Floats, Found, Options, PortStruct, arrays_of, library, load  # noqa: E402
from test_detector import BOXES, classifier_model, detector_model, in_int8, noise  # noqa: E402

from roadworthy.run.native.detector import Detector  # noqa: E402

ISAS = _native.isas()


@pytest.fixture(scope="module")
def api() -> Any:
    found = c.CDLL(_native.__file__)
    if not hasattr(found, "rw_load"):
        pytest.skip("this system's linker leaves the C API out of the module")
    return library(_native.__file__)


@pytest.fixture(scope="module")
def boxes() -> bytes:
    names = replace(BOXES, decode=replace(BOXES.decode, class_names=("cat", "dog", "größe")))
    return lower(in_int8(detector_model(names))).to_bytes()


@pytest.mark.parametrize("isa", ISAS)
def test_run_equals_the_reference(api: Any, isa: str) -> None:
    for seed in (3, 5, 8):
        model = random_int8_model(seed)
        plan = lower(model)
        rng = np.random.default_rng(seed)
        feeds = {p.name: rng.normal(size=p.dims).astype(np.float32) for p in plan.inputs}
        with load(api, plan.to_bytes(), 1 + seed % 3, isa) as handle:
            assert (api.rw_isa(handle.model).decode(), api.rw_threads(handle.model)) == (isa, 1 + seed % 3)
            assert api.rw_input_count(handle.model) == len(plan.inputs)
            ports = [handle.port(False, i) for i in range(len(plan.inputs))]
            assert ports == [(p.name, p.dims) for p in plan.inputs]
            wanted = ReferenceRunner(model).run(feeds)
            for number, got in enumerate(handle.run(*feeds.values())):
                assert np.array_equal(got, wanted[handle.port(True, number)[0]])
            assert api.rw_arena_bytes(handle.model) > 0 and api.rw_weight_bytes(handle.model) > 0


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 3])
def test_detect_equals_the_detector(api: Any, boxes: bytes, tmp_path: Path, threads: int, isa: str) -> None:
    detector = Detector(boxes, threads, isa=isa)
    most = 0
    with load(api, boxes, threads, isa) as handle:
        for number, hw in enumerate([(40, 60), (32, 48), (9, 100), (300, 200)]):
            image = noise(*hw, seed=number)
            wanted, rows = detector.detect(image), handle.detect(image)
            assert np.array_equal(rows[:, :4], wanted.boxes_xyxy)
            assert np.array_equal(rows[:, 4], wanted.scores) and rows[:, 5].tolist() == wanted.classes.tolist()
            assert np.array_equal(handle.detect(image, 2), rows[:2])
            most = max(most, len(rows))
        crop = noise(90, 120)[5:80, 20:100]
        assert np.array_equal(handle.detect(crop), handle.detect(crop.copy()))
    assert most > 3


def test_files_names_and_tasks(api: Any, boxes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "größe.rwp"
    path.write_bytes(boxes)
    model = api.rw_load(str(path).encode(), None)
    path.unlink()  # not needed any more
    assert api.rw_task(model, b"kind") == b"yolov8" and api.rw_task(model, b"nothing") is None
    names = [api.rw_class_name(model, i) for i in range(-1, 4)]
    assert names == [None, b"cat", b"dog", "größe".encode(), None]
    api.rw_free(model)
    assert api.rw_version().decode().count(".") >= 1


def wrong_files(folder: Path, plan: bytes) -> dict[str, tuple[bytes | None, str]]:
    damaged = bytearray(plan)
    damaged[len(plan) // 2] ^= 4
    contents = {
        "damaged": (bytes(damaged), "damaged"),
        "cut": (plan[:-1], "plan"),
        "short": (plan[:64], "plan"),
        "onnx": (b"\x08\x08\x12\x04" * 100, "plan"),
    }
    made: dict[str, tuple[bytes | None, str]] = {"missing": (str(folder / "missing.rwp").encode(), "missing.rwp")}
    for name, (data, word) in contents.items():
        (folder / name).write_bytes(data)
        made[name] = (str(folder / name).encode(), word)
    (folder / "empty").touch()
    made |= {"empty": (str(folder / "empty").encode(), "empty"), "a folder": (str(folder).encode(), "not a file")}
    return made | {"NULL": (None, "path")}


def said(api: Any) -> str:
    """The last sentence: one, of one line."""
    text = api.rw_error().decode()
    assert len(text) > 10 and text.endswith(".") and "\n" not in text
    return str(text)


def test_files_that_are_no_plans(api: Any, boxes: bytes, tmp_path: Path) -> None:
    for name, (path, word) in wrong_files(tmp_path, boxes).items():
        assert api.rw_load(path, None) is None, name
        assert word in said(api), (name, said(api))


def test_options_that_this_machine_does_not_have(api: Any, boxes: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, word in (
        (Options(0, b"mmx", 0), "`mmx` is not available here; choose one of portable"),
        (Options(65, None, 0), "threads is 65"),
        (Options(-1, None, 0), "threads is -1"),
    ):
        assert api.rw_load_memory(boxes, len(boxes), c.byref(options)) is None
        assert word in said(api)
    for isa in ISAS:
        monkeypatch.setenv("ROADWORTHY_ISA", isa)
        with load(api, boxes) as handle:
            assert api.rw_isa(handle.model).decode() == isa
    monkeypatch.setenv("ROADWORTHY_ISA", "nonsense")
    assert api.rw_load_memory(boxes, len(boxes), None) is None
    assert "`nonsense`" in said(api)


def test_null_and_wrong_counts(api: Any, boxes: bytes) -> None:
    api.rw_free(None)
    assert (api.rw_input_count(None), api.rw_output_count(None), api.rw_threads(None)) == (0, 0, 0)
    assert (api.rw_isa(None), api.rw_task(None, b"kind"), api.rw_class_name(None, 0)) == (b"", None, None)
    assert (api.rw_arena_bytes(None), api.rw_weight_bytes(None)) == (0, 0)
    assert api.rw_load_memory(None, 10, None) is None and "NULL" in said(api)
    with load(api, boxes) as handle:
        model, port, count = handle.model, PortStruct(), c.c_int()
        x, y = np.zeros((1, 3, 32, 48), np.float32), np.zeros((1, 7, 384), np.float32)
        into, out, nothing = arrays_of([x]), arrays_of([y]), (Floats * 1)()
        image, found = noise(4, 4), (Found * MOST)()
        at, row = image.ctypes.data, 12
        assert api.rw_run(model, into, 1, out, 1) == OK
        assert api.rw_detect(model, at, 4, 4, row, found, MOST, c.byref(count)) == OK
        assert api.rw_detect(model, at, 4, 4, row, None, 0, c.byref(count)) == OK and count.value == 0
        calls: list[tuple[str, Callable[[], int]]] = [
            ("model is NULL", lambda: api.rw_input(None, 0, c.byref(port))),
            ("model is NULL", lambda: api.rw_output(None, 0, c.byref(port))),
            ("is NULL", lambda: api.rw_input(model, 0, None)),
            ("input or output 1", lambda: api.rw_input(model, 1, c.byref(port))),
            ("input or output -1", lambda: api.rw_output(model, -1, c.byref(port))),
            ("model is NULL", lambda: api.rw_run(None, into, 1, out, 1)),
            ("inputs is NULL", lambda: api.rw_run(model, None, 1, out, 1)),
            ("`x` is NULL", lambda: api.rw_run(model, nothing, 1, out, 1)),
            ("`y` is NULL", lambda: api.rw_run(model, into, 1, nothing, 1)),
            ("0 inputs", lambda: api.rw_run(model, into, 0, out, 1)),
            ("2 outputs", lambda: api.rw_run(model, into, 1, out, 2)),
            ("model is NULL", lambda: api.rw_detect(None, at, 4, 4, row, found, MOST, c.byref(count))),
            ("image is NULL", lambda: api.rw_detect(model, None, 4, 4, row, found, MOST, c.byref(count))),
            ("0 rows", lambda: api.rw_detect(model, at, 0, 4, row, found, MOST, c.byref(count))),
            ("-4 columns", lambda: api.rw_detect(model, at, 4, -4, row, found, MOST, c.byref(count))),
            ("65536 rows", lambda: api.rw_detect(model, at, 65536, 4, row, found, MOST, c.byref(count))),
            ("stride", lambda: api.rw_detect(model, at, 4, 4, 11, found, MOST, c.byref(count))),
            ("detections is NULL", lambda: api.rw_detect(model, at, 4, 4, row, None, 1, c.byref(count))),
            ("capacity", lambda: api.rw_detect(model, at, 4, 4, row, found, -1, c.byref(count))),
            ("count is NULL", lambda: api.rw_detect(model, at, 4, 4, row, found, MOST, None)),
        ]
        for word, call in calls:
            assert call() == ERROR and word in said(api), (word, said(api))


@pytest.mark.parametrize("what", ["no task", "classes"])
def test_detect_without_boxes(api: Any, what: str) -> None:
    model = classifier_model() if what == "classes" else replace(detector_model(), task=None)
    image, count = noise(4, 4), c.c_int()
    with load(api, lower(model).to_bytes()) as handle:
        for _ in range(2):  # the failure leaves nothing behind
            code = api.rw_detect(handle.model, image.ctypes.data, 4, 4, 12, (Found * 1)(), 1, c.byref(count))
            text = api.rw_error().decode()
            assert code == ERROR and ("use classify" in text if what == "classes" else "has no task" in text)
        assert np.isfinite(handle.run(np.zeros((1, 3, 32, 48), np.float32))[0]).all()


def test_two_handles_in_two_threads(api: Any, boxes: bytes) -> None:
    """Each thread detects on its own handle, and keeps its own last sentence."""
    image = noise(40, 60)
    results: dict[str, Any] = {}
    meet = threading.Barrier(2, timeout=60)

    def work(name: str) -> None:
        with load(api, boxes, 2) as handle:
            meet.wait()
            rows = [handle.detect(image) for _ in range(30)]
            assert api.rw_load(name.encode(), None) is None
            meet.wait()
            results[name] = rows, api.rw_error().decode()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("/missing/a", "/missing/b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with load(api, boxes, 1) as handle:
        wanted = handle.detect(image)
    for name in ("/missing/a", "/missing/b"):
        rows, sentence = results[name]
        assert name in sentence and all(np.array_equal(r, wanted) for r in rows)
