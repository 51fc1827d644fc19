"""The cache of calibration: the same bytes with it and without, whatever happens to its files; and what a job says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small import place

from command import roadworthy, tree
from roadworthy.data.samples import Sample
from roadworthy.errors import InputError
from roadworthy.jobs import cache as module
from roadworthy.jobs.cache import Cache, JobShelf, cache_folder
from roadworthy.jobs.calibrate import Covered, fewest
from roadworthy.jobs.compress import Outcome, Settings, compress
from roadworthy.jobs.stages import Stages
from roadworthy.jobs.trial import Ui
from roadworthy.recipe import Calibration

pytestmark = pytest.mark.usefixtures("speeds")
ARRAYS = {"a": np.arange(1000, dtype=np.float32), "b": np.array(["x", "y"])}


class Notes(Ui):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place(tmp_path, 60))
    Calibration.forget()
    return tmp_path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that were opened."""
    names: list[str] = []
    plain = Sample.image
    monkeypatch.setattr(Sample, "image", lambda self: names.append(self.name) or plain(self))
    return names


def job(out: str = "out", ui: Ui | None = None, **options: Any) -> Outcome:
    """As a process of its own would run it."""
    Calibration.forget()
    told = {"task": "task.yaml", "target": "ort", "effort": "quick", "threads": 1, "max_drop": 100.0, **options}
    force = {k: told.pop(k) for k in ("force", "resume") if k in told}
    return compress("model.onnx", "images", out, Settings(**told), ui=ui, **force)


def shipped(outcome: Outcome) -> bytes:
    return (outcome.folder / "model.onnx").read_bytes()


# Entries


def test_what_is_put_is_found_again(tmp_path: Path):
    Cache(tmp_path / "c").put("key", ARRAYS)
    found = Cache(tmp_path / "c").get("key")
    assert found is not None and all(np.array_equal(found[k], ARRAYS[k]) for k in ARRAYS) and set(found) == set(ARRAYS)
    assert Cache(tmp_path / "c").get("other") is None and Cache(tmp_path / "none").get("key") is None
    assert len(list((tmp_path / "c").iterdir())) == 1 and not (tmp_path / "none").exists()


def test_what_computes_is_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Cache(tmp_path).put("key", ARRAYS)
    plain = module._computed_by()
    for other in (plain + "/more", plain.replace("/", "|", 1)):
        monkeypatch.setattr(module, "_computed_by", lambda other=other: other)
        assert Cache(tmp_path).get("key") is None


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-7],
    "cut to its digest": lambda data: data[:32],
    "one bit of the arrays": lambda data: data[:900] + bytes([data[900] ^ 4]) + data[901:],
    "one bit of the digest": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "another file": lambda data: b"something else entirely" * 9,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_entry_is_ignored_and_replaced(how: str, tmp_path: Path):
    Cache(tmp_path).put("key", ARRAYS)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[how](whole))
    cache = Cache(tmp_path)
    assert cache.get("key") is None and cache.found == 0
    cache.put("key", ARRAYS)
    assert file.read_bytes() == whole and cache.get("key") is not None


def test_a_folder_that_cannot_be_used_is_no_error(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        cache = Cache(folder)
        cache.put("key", ARRAYS)
        assert cache.get("key") is None
    Cache(tmp_path / "c").put("key", ARRAYS)
    (file,) = (tmp_path / "c").iterdir()
    file.unlink()
    file.mkdir()  # not even a file
    Cache(tmp_path / "c").put("key", ARRAYS)
    assert Cache(tmp_path / "c").get("key") is None and not list((tmp_path / "c").glob("*.part"))


def test_the_entry_that_was_not_used_for_longest_goes_first(tmp_path: Path):
    Cache(tmp_path).put("0", ARRAYS)
    size = next(tmp_path.iterdir()).stat().st_size
    cache = Cache(tmp_path, 3 * size + 10)
    for key in "12":
        cache.put(key, ARRAYS)
    for age, key in enumerate("210"):  # 0 is the oldest
        os.utime(cache._path(key) or "", times=(time.time() - 100 - age,) * 2)
    assert cache.get("0") is not None  # used: now it is the newest
    cache.put("3", ARRAYS)
    assert [key for key in "0123" if cache.get(key)] == ["0", "2", "3"]
    Cache(tmp_path, size - 1).put("4", ARRAYS)  # larger than all that may be kept
    assert [key for key in "01234" if cache.get(key)] == ["0", "2", "3"]


def test_what_another_process_gave_up_is_taken_away(tmp_path: Path):
    for name, age in (("old.part", 2 * module.ABANDONED_SECONDS), ("new.part", 0.0)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, times=(time.time() - age,) * 2)
    Cache(tmp_path).put("key", ARRAYS)
    assert sorted(p.name for p in tmp_path.glob("*.part")) == ["new.part"]


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("ROADWORTHY_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("ROADWORTHY_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "roadworthy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "roadworthy"


# Jobs


def test_a_second_job_measures_nothing_and_makes_the_same_bytes(here: Path, cache_of_its_own: Path, opened: list[str]):
    without = job("without", cache=False)
    assert not cache_of_its_own.exists()
    first_ui, second_ui = Notes(), Notes()
    opened.clear()
    first = job("first", first_ui)
    plain = len(opened)
    opened.clear()
    second = job("second", second_ui)
    assert "calibration: from the cache" in second_ui.lines and "calibration: from the cache" not in first_ui.lines
    used = first.report["data"]["calibration_images"]
    assert len(opened) <= plain - 2 * used  # neither the pass over the images, nor the look at what they cover
    assert shipped(first) == shipped(second) == shipped(without)
    assert first.report["data"] == second.report["data"] == without.report["data"]


def test_damage_done_between_two_jobs(here: Path, cache_of_its_own: Path):
    wanted = shipped(job("one"))
    entries = {p.name: p.read_bytes() for p in cache_of_its_own.iterdir()}
    for file in cache_of_its_own.iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    ui = Notes()
    assert shipped(job("two", ui)) == wanted and "calibration: from the cache" not in ui.lines
    assert {p.name: p.read_bytes() for p in cache_of_its_own.iterdir()} == entries


def test_a_job_without_the_cache_leaves_it_alone(here: Path, cache_of_its_own: Path):
    job("one")
    before = tree(cache_of_its_own)
    ui = Notes()
    job("two", ui, cache=False)
    assert tree(cache_of_its_own) == before and "calibration: from the cache" not in ui.lines


def test_a_job_interrupted_in_the_middle_of_its_calibration(here: Path, opened: list[str], monkeypatch: Any):
    monkeypatch.setattr("roadworthy.quantize.calibrate.CHECKPOINT_IMAGES", 8)
    whole = job("whole", cache=False)

    class Stop(Ui):
        def stage(self, text: str, total: int | None = None) -> Any:
            stop = text == "calibration"

            def advance(done: int) -> None:
                if stop and done == 19:
                    raise KeyboardInterrupt

            from contextlib import nullcontext

            return nullcontext(advance)

    with pytest.raises(KeyboardInterrupt):
        job("out", Stop(), cache=False)
    (begun,) = Path(".out.stages").glob("begun-*.npz")
    assert int(np.load(begun)["seen"]) == 16
    seen: list[int] = []

    class Count(Ui):
        def stage(self, text: str, total: int | None = None) -> Any:
            from contextlib import nullcontext

            return nullcontext(seen.append if text == "calibration" else lambda done: None)

    resumed = job("out", Count(), cache=False, resume=True)
    assert seen[0] == 17 and seen[-1] == whole.report["data"]["calibration_images"]
    assert shipped(resumed) == shipped(whole)


@pytest.mark.parametrize("begun", [True, False])
def test_a_damaged_stage_is_as_good_as_none(begun: bool, tmp_path: Path):
    stages = Stages(tmp_path / "stages", "key", False)
    shelf = JobShelf(stages, None)
    (shelf.put_begun if begun else shelf.put)("k", ARRAYS)
    read = shelf.begun if begun else shelf.get
    assert read("k") is not None
    (file,) = (tmp_path / "stages").glob("*.npz")
    file.write_bytes(file.read_bytes()[:-20])
    assert read("k") is None


# Which images


def test_the_report_says_what_the_images_cover(here: Path):
    ui = Notes()
    data = job(ui=ui, images=8).report["data"]
    assert data["calibration_images"] == 8 and data["chosen"] == "random" and 0.3 < data["covered"] < 1
    assert data["coverage"].startswith("8 of 30 images cover") and "chosen by coverage would cover" in data["coverage"]
    assert f"calibration: {data['coverage']}" in ui.lines
    best = job("best", images=8, choose="coverage")
    chosen = best.report["data"]
    assert chosen["chosen"] == "coverage" and chosen["covered"] > data["covered"]
    assert chosen["coverage"].startswith("8 of 30 images chosen by coverage cover")
    page = (best.folder / "report.html").read_text()
    assert chosen["coverage"] in page
    recipe = yaml.safe_load((best.folder / "recipe.yaml").read_text())
    assert (recipe["choose"], recipe["images"]) == ("coverage", 8)
    assert shipped(job("again", recipe=str(best.folder / "recipe.yaml"))) == shipped(best)


def test_auto_takes_the_fewest_that_cover(here: Path):
    data = job(images="auto", choose="coverage").report["data"]
    assert data["calibration_images"] in (16, 24)  # 24: what quick may take of 30
    assert data["covered"] >= 0.99 or data["calibration_images"] == 24


@pytest.mark.parametrize(
    ("reaches", "most", "wanted"),
    [(10, 128, 16), (16, 128, 16), (17, 128, 32), (60, 128, 64), (65, 128, 128), (400, 128, 128), (400, 100, 100),
     (10, 5, 5)],
)  # fmt: skip
def test_the_fewest(reaches: int, most: int, wanted: int):
    """99 % is reached at the image of this number."""
    covered = np.where(np.arange(1, 301) >= reaches, 0.995, 0.5)
    assert fewest(covered, most) == wanted


@pytest.mark.parametrize(
    ("covered", "told"),
    [
        (Covered(128, 278, 278, 0.961, 64, 0.9963, "random"),
         "128 of 278 images cover 96.1 % of the ranges of all; 64 chosen by coverage would cover 99.6 %;"
         " more do not help"),
        (Covered(32, 128, 278, 0.8, 32, 0.97, "random"),
         "32 of 128 images looked at (of 278) cover 80 % of the ranges of all;"
         " 32 chosen by coverage would cover 97 %"),
        (Covered(64, 278, 278, 0.99999, 64, 0.99999, "coverage"),
         "64 of 278 images chosen by coverage cover 99.9 % of the ranges of all"),
        (Covered(12, 12, 12, 1.0, 12, 1.0, "random"), "all 12 calibration images are used"),
    ],
)  # fmt: skip
def test_the_sentence(covered: Covered, told: str):
    assert str(covered) == told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"images": 0}, "--images is 0; give a number from 1 up, or auto"),
        ({"images": "many"}, "--images is 'many'; give a number"),
        ({"choose": "best"}, "--choose is 'best'; known are random, coverage"),
        ({"images": 9, "recipe": "r.yaml"}, "a recipe says which calibration images it uses"),
        ({"choose": "coverage", "recipe": "r.yaml"}, "edit `images` and `choose` in r.yaml"),
    ],
)
def test_what_is_refused(here: Path, options: dict[str, Any], told: str):
    with pytest.raises(InputError, match=told):
        job(**options)


def test_the_command(here: Path, capfd: pytest.CaptureFixture[str]):
    args = ["compress", "model.onnx", "--data", "images", "--task", "task.yaml", "--target", "ort", "--threads", 1]
    args += ["--effort", "quick", "--max-drop", 100]
    assert "'-1' is neither a number from 1 up nor auto" in roadworthy(capfd, *args, "--images", -1).refusal
    assert "'some' is neither a number" in roadworthy(capfd, *args, "--images", "some").refusal
    first = roadworthy(capfd, *args, "--images", 8, "--choose", "coverage", "--out", "a")
    assert first.code == 0 and "8 of 30 images chosen by coverage cover" in first.err, first.err
    Calibration.forget()
    again = roadworthy(capfd, *args, "--images", 8, "--choose", "coverage", "--out", "b")
    assert "calibration: from the cache" in again.err
    Calibration.forget()
    assert "from the cache" not in roadworthy(capfd, *args, "--images", 8, "--no-cache", "--out", "c").err
