"""The report: its schema refuses nonsense, its page is whole and safe, its pictures and plots show what they claim."""

from __future__ import annotations

import copy
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from roadworthy.check import pictures, plots
from roadworthy.check.pictures import Picture, compare, draw, match, panels, side_by_side
from roadworthy.check.report import validate, write_html, write_json
from roadworthy.detect.detections import Detections
from roadworthy.errors import InputError

HOSTILE = """<script>alert("x")</script>'"&amp;</title><img src=http://evil.example/a.png onerror=x>"""
SHA = "0123456789abcdef" * 4
VOID = {"meta", "img", "input", "br", "hr", "link"}


def scores(shift: float) -> dict[str, Any]:
    per_class = {"person": 40.0 + shift, "car": 30.0 + 8 * shift, "toaster": None}
    return {
        "map": 29.0 + shift,
        "ap50": 46.0 + shift,
        "small": 9.0 + shift,
        "recall": 51.0 + shift,
        "precision": 70.0,
        "threshold": 0.3,
        "per_class": per_class,
    }


def full_report() -> dict[str, Any]:
    """Every section filled; values are made up but agree with each other."""
    layers = [
        {
            "name": f"/backbone/stage{i}/Conv",
            "op": "Conv",
            "output": f"value_{i}",
            "shape": [1, 8, 52, 52],
            "macs": 1000 * i,
            "parameters": 100,
            "placement": "float" if i == 7 else "int8",
            "sqnr_db": 40.0 - i + (9 if i == 3 else 0),
            "local_sqnr_db": 44.0 - i % 3,
            "cosine": 0.999,
            "max_error": 0.25,
            "why": "range too wide" if i == 7 else None,
        }
        for i in range(1, 21)
    ]
    return {
        "roadworthy": "0.1.0",
        "created": "2025-03-14T10:22:31+00:00",
        "command": "roadworthy compress model.onnx",
        "seconds": 74.2,
        "verdict": "hold",
        "summary": ["int8, 1 layer kept in float."],
        "warnings": ["Only 20 test images."],
        "original": {"path": "m/model.onnx", "sha256": SHA, "bytes": 12000, "nodes": 40, "parameters": 2000, "macs": 9},
        "result": {
            "path": "out/model.int8.onnx",
            "sha256": SHA[::-1],
            "bytes": 4000,
            "variant": "int8",
            "target": "ort",
            "size_ratio": 3.0,
            "speed_ratio": 1.25,
        },
        "task": {
            "kind": "yolox",
            "how": "recognised from the graph",
            "preprocess": {"mean": (0, 0)},
            "decode": {"k": 1},
        },
        "data": {"source": "data.yaml", "content_id": "c0ffee", "kind": "YOLO", "test_images": 20, "note": None},
        "budgets": [
            {
                "name": "mAP drop",
                "limit": 1.5,
                "measured": 1.0,
                "interval": [0.2, 1.9],
                "unit": "points",
                "verdict": "holds",
            },
            {"name": "size ratio", "limit": 2, "measured": 3.0, "direction": "at least", "verdict": "holds"},
        ],
        "accuracy": {
            "metric": "mAP",
            "reference": "labels",
            "original": scores(0.0),
            "compressed": scores(-1.0),
            "drop": 1.0,
            "interval": [0.2, 1.9],
            "agreement": {"mean_iou": 0.95123},
        },
        "speed": [
            {"label": "float32", "target": "ort", "median_ms": 5.0, "ratio": 1.0, "samples": 9, "dropped": 1},
            {
                "label": "int8",
                "target": "ort",
                "median_ms": 4.0,
                "ratio": 1.25,
                "ratio_spread": [1.2, 1.3],
                "samples": 9,
            },
        ],
        "candidates": [
            {"name": "all int8", "drop": 9.0, "bytes": 3900, "ratio": 1.3, "why": "drop past the budget"},
            {"name": "one float", "drop": 1.0, "bytes": 4000, "ratio": 1.25, "chosen": True},
        ],
        "sensitivity": [
            {"layer": r["name"], "metric": "MSE", "value": 0.1 * i, "cost_rank": 21 - i, "kept_float": i == 7}
            for i, r in enumerate(layers, 1)
        ],
        "layers": layers,
        "steps": [{"name": "Quantize", "seconds": 5.0, "detail": "mse"}],
        "environment": {"cpu": "some CPU", "threads": 2, "versions": {"numpy": "2.0"}},
        "recipe": "steps:\n  - quantize: {}\n",
        "seed": 0,
    }


def boxes(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(int))


def street(title: str = "street.jpg", size: tuple[int, int] = (240, 320), **more: Any) -> Picture:
    image = np.full((*size, 3), 120, np.uint8)
    before = boxes((10, 10, 110, 110, 0.9, 0), (150, 20, 220, 90, 0.6, 1), (20, 150, 90, 220, 0.5, 2))
    after = boxes((12, 11, 111, 112, 0.8, 0), (151, 21, 221, 91, 0.2, 1), (230, 150, 300, 220, 0.45, 2))
    return Picture(title, image, before, after, more.pop("names", ("person", "car", "dog")), **more)


class Page(HTMLParser):
    """Checks that tags nest, and collects text, tags, attributes and tables."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(dict(attrs).get("data-name") or "other", [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and "table" in self.open:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style", "title"):
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def ids(self) -> set[str]:
        return {a["id"] or "" for tag, a in self.tags if tag == "section"}


def page(report: dict[str, Any], shown: list[Picture], folder: Path) -> tuple[Page, str]:
    write_html(report, shown, folder / "report.html")
    text = (folder / "report.html").read_text("utf-8")
    return Page(text), text


# ---- the file ------------------------------------------------------------------------------------------------------


def test_page_is_whole_and_asks_for_nothing(tmp_path: Path) -> None:
    parsed, text = page(full_report(), [street()], tmp_path)
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "iframe", "object", "base"), tag
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/jpeg;base64,")), (tag, attributes[name])
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest", text)
    policy = next(a["content"] for t, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'")


def test_first_glance_says_verdict_size_speed_and_drop(tmp_path: Path) -> None:
    parsed, _ = page(full_report(), [], tmp_path)
    top = parsed.text[: parsed.text.index("Certificate")]
    for part in (
        "Budgets hold",
        "3.00× smaller",
        "1.25× faster",
        "1.00 points",
        "0.20 to 1.90",
        "1 layer kept in float",
    ):
        assert part in top, part
    assert "the 95 % interval reaches past the limit of: mAP drop" in top
    assert "mAP 29.00 → 28.00" in top and "median 5.00 → 4.00 ms" in top


def test_broken_slower_and_unmeasured_are_said_plainly(tmp_path: Path) -> None:
    report = full_report()
    report["verdict"], report["result"]["speed_ratio"] = "broken", 0.5
    report["budgets"][1] |= {"limit": 3.5, "verdict": "broken"}
    report["budgets"].append({"name": "p99 latency", "limit": 3, "verdict": "not measured"})
    parsed, text = page(report, [], tmp_path)
    assert "Budgets broken" in parsed.text and "Budgets hold" not in text
    assert "1 of 3 broken: size ratio; not measured: p99 latency" in parsed.text
    assert "2.00× slower" in parsed.text


def test_no_budgets_is_not_called_a_pass(tmp_path: Path) -> None:
    parsed, _ = page({**full_report(), "budgets": []}, [], tmp_path)
    assert "No budgets set" in parsed.text and "✓ Budgets hold" not in parsed.text


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: v if k in ("verdict", "placement", "direction", "metric") else spoil(v) for k, v in value.items()
            }
        if isinstance(value, list):
            return [spoil(v) for v in value]
        return HOSTILE + value if isinstance(value, str) else value

    report = spoil(full_report())
    report["accuracy"]["original"]["per_class"] = {HOSTILE: 10.0, "a\udcffb": 3.0}
    report["environment"][HOSTILE] = 1
    clean, _ = page(full_report(), [street()], tmp_path)
    parsed, text = page(report, [street(HOSTILE, names=(HOSTILE, "ü" * 9, "b"), note=HOSTILE)], tmp_path)
    for tag in ("script", "img", "title", "iframe"):  # `title` also counts the hover texts inside drawings
        extra = sum(t == tag for t, _ in parsed.tags) - sum(t == tag for t, _ in clean.tags)
        assert extra == 0, (tag, extra)
    assert "<script>alert" not in text and 'alert("x")' in parsed.text
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)


@pytest.mark.parametrize(
    "section", ["accuracy", "speed", "candidates", "sensitivity", "layers", "steps", "task", "data", "environment"]
)
def test_each_section_may_be_absent(section: str, tmp_path: Path) -> None:
    whole, _ = page(full_report(), [], tmp_path)
    report = full_report()
    del report[section]
    parsed, _ = page(report, [], tmp_path)
    own = section if section in whole.ids() else None
    assert parsed.ids() == whole.ids() - {own}
    linked = {(a.get("href") or "")[1:] for t, a in parsed.tags if t == "a"}
    assert linked == parsed.ids()


def test_required_keys_alone_make_a_page_without_empty_boxes(tmp_path: Path) -> None:
    report = full_report()
    small = {k: report[k] for k in ("roadworthy", "created", "verdict", "summary", "budgets")}
    parsed, text = page(small | {"original": {}, "result": {}}, [], tmp_path)
    assert parsed.ids() == {"budgets", "certificate"}
    assert parsed.text.count("not measured") == 3  # size, speed, accuracy
    assert '<svg class="plot"' not in text and "<dd></dd>" not in text and "None" not in parsed.text


def test_empty_sections_count_as_absent(tmp_path: Path) -> None:
    report = full_report() | {
        "speed": [],
        "layers": [],
        "candidates": [],
        "sensitivity": [],
        "steps": [],
        "warnings": [],
    }
    report["accuracy"] = {"metric": "mAP"}
    parsed, _ = page(report, [], tmp_path)
    assert parsed.ids() == {"budgets", "size", "setup", "certificate"}


def test_tables_start_with_the_worst_and_can_be_sorted(tmp_path: Path) -> None:
    parsed, text = page(full_report(), [], tmp_path)
    head, *rows = parsed.tables["layers"]
    sqnr = [float(r[head.index("SQNR dB")]) for r in rows]
    assert sqnr == sorted(sqnr) and len(rows) == 20
    head, *rows = parsed.tables["accuracy per class"]
    assert [r[0] for r in rows] == ["car", "person"]  # nothing is known of the toaster
    assert rows[0][head.index("AP change")] == "\u22128.0"
    assert "target" in parsed.tables["speed"][0] and "QPS" not in parsed.tables["speed"][0]  # no value, no column
    script = text[text.index("<script>") :]
    assert "aria-sort" in script and "addEventListener" in script and "data-filter" in text
    buttons = sum(t == "button" for t, _ in parsed.tags)
    heads = sum(len(rows[0]) for name, rows in parsed.tables.items() if name != "other")
    assert buttons == heads > 20


def test_agreement_and_distances_are_told_in_words_with_units(tmp_path: Path) -> None:
    report = full_report()
    report["accuracy"]["agreement"] = {"found_again": 97.5, "mean_iou": 0.95123, "detections": 1200, "else": 3}
    report["pareto"] = [{"name": "4 bits", "bytes": 9, "predicted": 0.25, "measured": 0.5}]
    text = page(report, [], tmp_path)[1]
    for term, value in (
        ("detections of the original found again (same class, IoU at least 0.5)", "97.50\u00a0%"),
        ("mean IoU of those found again", "0.951"),
        ("detections of the original", "1\u202f200"),
        ("else", "3"),
    ):
        assert f"<dt>{term}</dt><dd>{value}</dd>" in text
    assert "predicted distance" in text and "measured distance" in text and "about 1 unrelated" in text


@pytest.mark.parametrize("count", [8, 24])
def test_noisy_pictures_stay_within_three_megabytes(count: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    found = boxes((10, 10, 100, 100, 0.9, 0))
    write_html(full_report(), [Picture(str(i), noise, found, found) for i in range(count)], tmp_path / "r.html")
    assert 200_000 < (tmp_path / "r.html").stat().st_size < 3_000_000


def test_unwritable_place_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        write_json(full_report(), tmp_path / "nowhere" / "report.json")
    with pytest.raises(InputError, match="cannot be written"):
        (tmp_path / "taken").mkdir()
        write_html(full_report(), [], tmp_path / "taken")  # a folder stands there
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


# ---- the schema ----------------------------------------------------------------------------------------------------


def test_json_round_trip_with_numpy_and_without_nan(tmp_path: Path) -> None:
    report = full_report()
    report["seed"] = np.int64(7)
    report["layers"][0] |= {"cosine": np.float32(0.5), "sqnr_db": float("inf"), "shape": np.array([1, 2])}
    report["budgets"][0]["interval"] = (np.float64(0.2), 1.9)
    report["environment"]["spread"] = np.float32("nan")
    report["original"]["path"] = Path("m") / "model.onnx"
    write_json(report, tmp_path / "report.json")
    back = json.loads((tmp_path / "report.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert back == validate(report) == validate(back)
    assert back["seed"] == 7 and back["layers"][0]["shape"] == [1, 2] and back["layers"][0]["sqnr_db"] is None
    assert back["environment"]["spread"] is None and back["original"]["path"] == str(Path("m/model.onnx"))


BAD: dict[str, tuple[tuple[str | int, ...], Any, str]] = {
    "unknown key": (("sped",), [], "sped"),
    "unknown key inside": (("layers", 0, "snr"), 1.0, r"layers\[0\].snr"),
    "unknown verdict": (("verdict",), "pass", "verdict"),
    "text for a number": (("speed", 0, "median_ms"), "5.0", "median_ms"),
    "three-ended interval": (("accuracy", "interval"), [1, 2, 3], "interval"),
    "fraction sentinel": (("accuracy", "original", "map"), -1.0, "map"),
    "no JSON value": (("environment", "x"), object(), "object"),
    "holds beyond its limit": (("budgets", 0, "measured"), 1.6, "mAP drop"),
    "forgotten direction": (("budgets", 1, "direction"), "at most", "size ratio"),
    "measured but not judged": (("budgets", 0, "verdict"), "not measured", "mAP drop"),
    "verdict against budgets": (("verdict",), "broken", "no budget is"),
    "size ratio upside down": (("result", "size_ratio"), 1 / 3, "size_ratio"),
    "drop with a wrong sign": (("accuracy", "drop"), -1.0, "drop"),
}


@pytest.mark.parametrize("fault", BAD)
def test_malformed_report_is_refused(fault: str, tmp_path: Path) -> None:
    path, value, named = BAD[fault]
    report = full_report()
    place: Any = report
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    for write in (lambda p: write_json(report, p), lambda p: write_html(report, [], p)):
        with pytest.raises(ValueError, match=named) as caught:
            write(tmp_path / "report")
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["roadworthy", "created", "verdict", "summary", "original", "result", "budgets"])
def test_required_keys_are_required(key: str) -> None:
    report = full_report()
    del report[key]
    with pytest.raises(ValueError, match=key):
        validate(report)


def test_validate_leaves_its_input_alone() -> None:
    report = full_report()
    before = copy.deepcopy(report)
    validate(report)
    assert report == before


# ---- pictures ------------------------------------------------------------------------------------------------------


def test_iou_equals_pycocotools() -> None:
    rng = np.random.default_rng(3)
    corner, side = rng.uniform(0, 80, (2, 30, 2)), rng.uniform(0, 40, (2, 30, 2))
    a, b = np.concatenate([corner, corner + side], -1).astype(np.float64)
    xywh = [np.concatenate([c[:, :2], c[:, 2:] - c[:, :2]], -1) for c in (a, b)]
    expected = coco_mask.iou(xywh[0], xywh[1], [0] * 30)
    np.testing.assert_allclose(pictures.iou_matrix(a, b), expected, atol=1e-12)
    assert pictures.iou_matrix(a[:0], b).shape == (0, 30)


def test_matching_needs_class_and_overlap_and_takes_each_box_once() -> None:
    before = boxes((0, 0, 10, 10, 0.5, 0), (0, 0, 10, 10, 0.9, 0), (50, 50, 60, 60, 0.8, 1))
    after = boxes((0, 0, 10, 9, 0.7, 0), (50, 50, 60, 60, 0.8, 2))
    found = match(before, after)
    assert found.kept == ((1, 0),)  # the stronger of two equal boxes
    assert found.lost == (0, 2) and found.new == (1,)
    edge = boxes((0, 0, 10, 5, 0.9, 0))  # IoU exactly one half counts
    assert match(boxes((0, 0, 10, 10, 0.9, 0)), edge).kept == ((0, 0),)
    assert match(boxes((0, 0, 10, 10, 0.9, 0)), boxes((0, 0, 10, 4.9, 0.9, 0))).kept == ()
    assert match(before, Detections.empty()).lost == (0, 1, 2)
    assert match(Detections.empty(), after).new == (0, 1)


def test_comparison_tells_gone_from_scored_lower() -> None:
    result = compare(street())
    assert result.kept == 1 and result.score_shift == pytest.approx(0.1, abs=1e-6)
    by_name = {(c.kind, c.name): c for c in result.changes}
    assert set(by_name) == {("lost", "car"), ("lost", "dog"), ("new", "dog")}
    assert by_name["lost", "car"].other_score == pytest.approx(0.2)  # still there, below the threshold
    assert by_name["lost", "dog"].other_score is None
    twins = boxes((0, 0, 50, 50, 0.9, 0), (0, 0, 50, 48, 0.7, 0))
    merged = Picture("twins", np.zeros((60, 60, 3), np.uint8), twins, boxes((0, 0, 50, 50, 0.5, 0)))
    (lost,) = compare(merged).changes  # the one box left is above the threshold and belongs to the other twin
    assert lost.score == pytest.approx(0.7) and lost.other_score is None


def test_lost_is_red_and_dashed_new_is_orange(tmp_path: Path) -> None:
    _, after = pictures._render(street(), 320)

    def share(side: list[tuple[int, int]], color: tuple[int, int, int]) -> float:
        return float(np.mean([np.abs(after[y, x].astype(int) - color).max() < 60 for x, y in side]))

    lost = share([(20, y) for y in range(155, 216)], pictures.LOST)  # left side of the lost dog; scale is 1
    new = share([(230, y) for y in range(155, 216)], pictures.NEW)
    assert 0.3 < lost < 0.95 and new == 1.0
    parsed, _ = page(full_report(), [street()], tmp_path)
    assert "lost: car 0.60, now 0.20, below the threshold of 0.30" in parsed.text


def test_class_colours_are_stable_distinct_and_never_red_or_orange() -> None:
    colors = [pictures.color_of(i) for i in range(80)]
    assert len(set(colors[:20])) == 20 and colors[3] == pictures.color_of(3)
    hsv = cv2.cvtColor(np.array([colors], np.uint8), cv2.COLOR_BGR2HSV)[0, :, 0].astype(int)
    assert hsv.min() * 2 >= 50 and hsv.max() * 2 <= 305


def test_draw_copies_and_survives_boxes_outside() -> None:
    image = np.zeros((50, 60, 3), np.uint8)
    drawn = draw(image, boxes((-20, -20, 300, 300, 0.9, 0), (70, 70, 90, 90, 0.9, 1)), ["a very long class name" * 3])
    assert image.max() == 0 and drawn.shape == image.shape and drawn.max() > 0


@pytest.mark.parametrize(
    "shape", [(32, 32, 3), (1080, 1920, 3), (1200, 300, 3), (200, 200), (200, 200, 4), (3, 900, 1)]
)
def test_panels_have_bounded_size(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    picture = Picture("p", image, boxes((1, 1, 20, 20, 0.9, 0)), Detections.empty())
    for data in panels(picture, 60_000):
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert len(data) <= 60_000 and decoded.shape[1] <= 640 and decoded.shape[0] <= 480
    both = cv2.imdecode(np.frombuffer(side_by_side(picture), np.uint8), cv2.IMREAD_COLOR)
    assert both.shape[1] <= 2 * 640 + 8


def test_classifier_pictures_show_the_best_three_labels(tmp_path: Path) -> None:
    image = np.full((64, 64, 3), 90, np.uint8)
    before, after = np.array([0.1, 0.6, 0.2, 0.1]), np.array([0.5, 0.3, 0.15, 0.05])
    picture = Picture("tench.jpg", image, before, after, ("ant", "bee", "cat"))
    parsed, _ = page(full_report(), [picture], tmp_path)
    assert "original : bee 0.600, cat 0.200, ant 0.100" in parsed.text.replace("original:", "original :")
    assert "compressed: ant 0.500, bee 0.300, cat 0.150" in parsed.text
    assert pictures.top_labels(np.array([0.0, 0.0, 0.0, 1.0]), ("ant",), 1) == [("class 3", 1.0)]


def test_wrong_pictures_are_refused() -> None:
    found = Detections.empty()
    with pytest.raises(ValueError, match="uint8"):
        Picture("float.jpg", np.zeros((4, 4, 3), np.float32), found, found)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="class scores"):
        Picture("mixed.jpg", np.zeros((4, 4, 3), np.uint8), found, np.ones(3, np.float32))


# ---- plots ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low, high", [(0, 1), (0, 0.003), (-3, 17), (0, 51234.0), (2, 2), (0, float("nan")), (-1, 0)])
def test_ticks_cover_the_range_in_round_steps(low: float, high: float) -> None:
    marks = plots.ticks(low, high)
    assert 2 <= len(marks) <= 8 and marks[0] <= low and not marks[-1] < high
    steps = np.diff(marks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    lead = steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)
    assert min(abs(lead - m) for m in (1, 2, 2.5, 5)) < 1e-6


def rects(svg: str) -> list[dict[str, str | None]]:
    shapes = [a for t, a in Page(svg).tags if t == "rect"]
    return [a for a in shapes if a["fill"] != "transparent" and a["width"] != "11.0"]


def test_bars_are_as_long_as_their_values() -> None:
    svg = plots.bars(
        [plots.Bar("a", 4.0), plots.Bar("b", 1.0), plots.Bar("c", -2.0, "float")], title="t", axis="ms", limit=3
    )
    wide = [float(r["width"] or 0) for r in rects(svg)]
    assert wide[0] == pytest.approx(4 * wide[1], abs=0.3) and wide[2] == pytest.approx(2 * wide[1], abs=0.3)
    left = [float(r["x"] or 0) for r in rects(svg)]
    assert left[0] == left[1] and left[2] + wide[2] == pytest.approx(left[0], abs=0.2)
    assert "stroke-dasharray" in svg and plots.bars([], title="t", axis="ms") == ""


def test_stacked_parts_add_up() -> None:
    svg = plots.stacked(
        {"one": {"int8": 3e6, "rest": 1e6}, "two": {"rest": 2e6}}, title="t", axis="MB", scale=1e6, unit="MB"
    )
    wide = [float(r["width"] or 0) + 1 for r in rects(svg)]  # a gap of one unit parts neighbours
    assert wide[0] == pytest.approx(3 * wide[1], abs=0.5) and wide[2] == pytest.approx(2 * wide[1], abs=0.5)
    assert "4 MB" in svg and "75.0 %" in svg
    fills = [r["fill"] for r in rects(svg)]
    assert fills[1] == fills[2] != fills[0]


def test_lines_leave_gaps_and_rise_upwards() -> None:
    points = [plots.Point(i, y) for i, y in enumerate([10.0, 20.0, None, 5.0, 6.0])]
    svg = plots.lines({"a": points}, title="t", x_axis="x", y_axis="y", tones={"a": "int8"})
    path = re.search(r'<path d="([^"]+)"', svg)
    assert path and path[1].count("M") == 2 and path[1].count("L") == 2
    heights = [float(a["cy"] or 0) for t, a in Page(svg).tags if t == "circle"]
    assert len(heights) == 4 and heights[1] < heights[0] < heights[2]
    assert plots.lines({"a": points[:1]}, title="t", x_axis="x", y_axis="y", tones={"a": "int8"}) == ""


def test_numbers_read_well() -> None:
    assert [plots.number(v) for v in (0, 1.5, 12345, 0.00123, -2.0, 1e-9, 123.456)] == [
        "0",
        "1.5",
        "12\u202f345",
        "0.00123",
        "\u22122",
        "1.00e\u221209",
        "123",
    ]
    assert len(plots.shorten("/backbone/dark3/conv/Conv_123", 100)) <= 14 and plots.shorten("short", 100) == "short"
    assert plots.shorten("/backbone/dark3/conv/Conv_123", 100).endswith("Conv_123")


def test_size_estimate_agrees_with_the_files(tmp_path: Path) -> None:
    _, text = page(full_report(), [], tmp_path)
    # 20 layers of 100 weights, one kept: 1900 int8 bytes, 400 float bytes, 1700 other; before 8000 and 4000
    for part in ("original, float32 weights: 8 kB (66.7 %)", "compressed, int8 weights: 1.9 kB", "other: 1.7 kB"):
        assert part in text, part
    assert "estimated from the layer table" in text
    given = full_report() | {"size": {"original": {"weights": 12000}, "compressed": {"weights": 4000}}}
    assert "estimated" not in page(given, [], tmp_path)[1]


# ---- real images ---------------------------------------------------------------------------------------------------


@pytest.mark.assets
def test_real_photos_keep_the_report_small(tmp_path: Path) -> None:
    root = Path(os.environ.get("ROADWORTHY_ASSETS") or Path(__file__).parents[2].parent / "shared" / "assets")
    if not (root / "coco" / "images").is_dir():
        pytest.skip(f"no COCO images at {root}: set ROADWORTHY_ASSETS to the assets folder")
    files = sorted((root / "coco" / "images").rglob("*.jpg"))[:8]
    found = boxes((30, 30, 200, 200, 0.8, 0), (100, 50, 300, 220, 0.5, 2))
    shown = [Picture(f.name, cv2.imread(str(f)), found, found.keep(np.array([0])), ("person",)) for f in files]
    parsed, text = page(full_report(), shown, tmp_path)
    assert sum(t == "img" for t, _ in parsed.tags) == 16 and len(text.encode()) < 3_000_000
