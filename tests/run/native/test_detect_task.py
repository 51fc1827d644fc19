"""The task in a plan's text section: what Python writes, C++ reads; and garbage is refused with a sentence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roadworthy.data.preprocess import Preprocess
from roadworthy.detect.spec import DecodeSpec
from roadworthy.model.task import Task
from roadworthy.run.native.task_text import task_text

_native = pytest.importorskip("roadworthy._native")
FULL = Task(
    Preprocess((20, 24), "crop", "center", 7, 40, "gray", "nhwc", 1 / 255, 0.5, 1e-5, "linear"),  # type: ignore[arg-type]
    DecodeSpec("yolov5", 2, (20, 24), (8,), (((1.5, 2.0), (3.0, 4e-05)),), outputs=("a;b", "c\\d"),
               class_names=("x\ty", "z\n;")),
)  # fmt: skip
TEXT = task_text(FULL)


def changed(key: str, value: str) -> str:
    lines = [line for line in TEXT.split("\n") if line and not line.startswith((key + "\t", "task_json"))]
    return "\n".join([*lines, f"{key}\t{value}", ""])


def test_every_field_is_read() -> None:
    assert _native.Preparation(TEXT).floats(np.zeros((30, 50, 3), np.uint8))[0].shape == (1, 20, 24, 1)
    head = np.zeros((1, 2 * 7, 3, 3), np.float32)
    _native.Finishing(TEXT.replace("a\\;b;c\\\\d", "a\\;b"), ["a;b"], [list(head.shape)]).run([head], 0.3, 0.5, 10)
    with pytest.raises(ValueError, match=r"there is no output 'c\\d'"):
        _native.Finishing(TEXT, ["a;b"], [list(head.shape)])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size_hw", "20"), ("size_hw", "20 0"), ("size_hw", "20 99999"), ("size_hw", "a b"), ("size_hw", "20  20"),
        ("resize", "squeeze"), ("pad_value", "256"), ("pad_value", "-1"), ("pad_value", "1.5"), ("color", ""),
        ("scale", "nan"), ("scale", "1e999"), ("scale", "1,5"), ("scale", " 1"), ("scale", "1 "), ("scale", "0"),
        ("std", "0"), ("mean", "1 2"), ("strides", "8 x"), ("strides", "0"), ("anchors", "1 2 3"), ("decoded", "yes"),
        ("reg_max", "-1"), ("box_format", "xywh"), ("background", "x"), ("class_names", "a\\"), ("class_names", "a\\q"),
        ("class_names", "a;b;c"), ("iou_threshold", "1.5"), ("max_detections", "-1"), ("num_classes", "99999999"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=key):
        _native.Preparation(changed(key, value))


def test_other_damage() -> None:
    with pytest.raises(ValueError, match="no tab"):
        _native.Preparation("kind yolox\n")
    with pytest.raises(ValueError, match="given once"):
        _native.Preparation(TEXT + "kind\traw\n")
    with pytest.raises(ValueError, match="size_hw"):
        _native.Preparation("")
    _native.Preparation(TEXT + "some_later_key\twhatever\n")  # unknown keys are passed over


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_garbage_never_crashes(data: st.DataObject) -> None:
    text = bytearray(TEXT.encode())
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from([b"\t", b"\n", b";", b"9", b"-", b"\\"])
        )
    try:
        _native.Preparation(text.decode())
    except ValueError as error:
        assert str(error)
