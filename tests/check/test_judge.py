"""Verdicts that must not be fooled: outputs that are not finite, outputs that are exactly equal, distances of both."""

from __future__ import annotations

import numpy as np
import pytest

from roadworthy.check.accuracy import EXACT_DB, Predictions, Reference, output_sqnr_db
from roadworthy.check.judge import Judge, distance
from roadworthy.data.preprocess import Preprocess
from roadworthy.data.samples import Samples
from roadworthy.detect.spec import DecodeSpec
from roadworthy.model.task import Task

RAW = Task(Preprocess((8, 8), resize="stretch"), DecodeSpec("raw", input_hw=(8, 8)))
X = np.linspace(-1, 1, 50).astype(np.float32)


def raw(x: np.ndarray) -> Predictions:
    return Predictions(raw=({"y": x},))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_output_that_is_not_finite_breaks_the_budget(bad: float) -> None:
    broken = X.copy()
    broken[3] = bad
    judged = Judge(RAW, Samples(()), raw(X), Reference("original"), 0.5, 25.0)(raw(broken))
    assert not judged.holds and judged.value == -EXACT_DB
    assert distance({"y": X}, {"y": broken}, RAW) == np.inf


def test_equal_outputs_hold_even_where_they_are_zero() -> None:
    zero = np.zeros(5, np.float32)
    assert output_sqnr_db(raw(zero), raw(zero)) == EXACT_DB
    assert output_sqnr_db(raw(X), raw(X)) == EXACT_DB
    assert output_sqnr_db(raw(X), raw(1.1 * X)) == pytest.approx(20, abs=1e-3)


def test_classes_that_are_all_wrong_are_no_original_to_measure_by() -> None:
    task = Task(Preprocess((8, 8), resize="stretch"), DecodeSpec("classify", num_classes=3, input_hw=(8, 8)))
    scores = np.eye(3, dtype=np.float32)[[0, 1, 2] * 10]
    judge = Judge(
        task, Samples(()), Predictions(scores=scores), Reference("labels", labels=np.array([1, 2, 0] * 10)), 0.5
    )
    assert judge.original_value == 0  # jobs.compress refuses below LEAST_SCORE
