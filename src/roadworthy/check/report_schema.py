"""The schema of a report, and its check. A report is a plain dict; this text says what may stand in it.

Accuracies are points 0..100, times milliseconds, sizes bytes
(1 MB = 10^6 bytes). Ratios are original / compressed, so above 1 means smaller or faster. A drop is original minus
compressed, so positive means lost. THE schema (* required; everything else may be absent; None means not measured):

    roadworthy*, created* (ISO 8601), command, seconds, verdict* "hold" | "broken", summary* [sentence], warnings [text]
    original*   {path, sha256, bytes, nodes, parameters, macs}
    result*     {path, sha256, bytes, variant, target, size_ratio, speed_ratio}
    task        {kind, how, preprocess {}, decode {}}
    data        {source, content_id, kind, calibration_images, chosen ("random" | "coverage"), covered (share of the
                 ranges of all images that these cover, 0..1), coverage (a sentence), test_images, note}
    budgets*    [{name*, metric, limit*, measured, interval [low, high], unit, direction "at most" | "at least",
                  verdict* "holds" | "broken" | "not measured", note}]            direction defaults to "at most"
    accuracy    {metric ("mAP", "AP50", "AP75", "top-1", "top-5"), reference, original S, compressed S, drop,
                 interval [low, high] of the drop at 95 %, boxes_per_class {name: count}, agreement {name: value}}
                 S = {map, ap50, ap75, small, medium, large, recall, precision, threshold, per_class {name: AP},
                      recall_per_class {name: recall}, top1, top5}
    operating   {original* and compressed*: the score thresholds, images (that it was refitted on), why,
                 recall and precision: [of the original, of the compressed model at the original's threshold, at its
                 own], on the test images}
    speed       [{label*, target, median_ms, p90_ms, qps, load_ms, peak_mb, file_bytes, ratio, ratio_spread [low, high],
                  samples, dropped, end_to_end_ms}]                                 the first row is the baseline
    size        {original {part: bytes}, compressed {part: bytes}}     absent: estimated from `layers`, and said so
    candidates  [{name*, variant, distance (held-out images), drop, bytes, ratio, seconds, chosen, why}]
    training    {candidate*, shipped, teacher, steps* (made), best_step* (delivered; 0: what it began with), averaged,
                 stopped (why), seconds, peak_mb, images (trained on), watched, held_out, settings {},
                 distances [before, delivered] on the watched images, held_out_distance [before, after],
                 drop [before, after] on the test images, loss [[step, mean loss]],
                 distance and distance_of_average [[step, distance of the watched images]]}
    pareto      [{name*, variant, bytes*, predicted, measured, drop, chosen, recipe (path)}]
                predicted and measured: task distance to the original on calibration images
    sensitivity [{layer*, metric, value, cost_rank (1 costs most), kept_float}]
    layers      [{name*, op, output, shape [int | str], macs, parameters, placement "int8" | "float" | "int8 storage",
                  sqnr_db, local_sqnr_db, cosine, max_error, why}]     in the order of execution
    steps       [{name*, seconds, detail}]     environment {}     recipe (YAML text)     seed

A report that contradicts itself (a verdict against its budgets, a budget against its limit, a drop or a size ratio
against the figures beside it) is refused: it is evidence, and a slip in it is a defect of the caller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from numbers import Integral, Real
from pathlib import PurePath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

HEADLINE = {"mAP": "map", "AP50": "ap50", "AP75": "ap75", "top-1": "top1", "top-5": "top5"}

Points = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Interval = Annotated[list[float | None], Field(min_length=2, max_length=2)]
PerClass = dict[str, Points | None]


class Part(BaseModel):
    """A piece of the report: unknown keys are errors, nothing is coerced from text."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Original(Part):
    path: str | None = None
    sha256: str | None = None
    bytes: Count | None = None
    nodes: Count | None = None
    parameters: Count | None = None
    macs: Count | None = None


class Result(Part):
    path: str | None = None
    sha256: str | None = None
    bytes: Count | None = None
    variant: str | None = None
    target: str | None = None
    size_ratio: Positive | None = None
    speed_ratio: Positive | None = None


class TaskPart(Part):
    kind: str | None = None
    how: str | None = None
    preprocess: dict[str, Any] | None = None
    decode: dict[str, Any] | None = None


class Data(Part):
    source: str | None = None
    content_id: str | None = None
    kind: str | None = None
    calibration_images: Count | None = None
    chosen: Literal["random", "coverage"] | None = None
    covered: Annotated[float, Field(ge=0, le=1)] | None = None
    coverage: str | None = None
    test_images: Count | None = None
    note: str | None = None


class Budget(Part):
    name: str
    metric: str | None = None
    limit: float
    measured: float | None = None
    interval: Interval | None = None
    unit: str | None = None
    direction: Literal["at most", "at least"] = "at most"
    verdict: Literal["holds", "broken", "not measured"]
    note: str | None = None

    @property
    def at_least(self) -> bool:
        return self.direction == "at least"

    @property
    def crosses(self) -> bool:
        """The unfavourable end of the interval lies past the limit."""
        pair = ends(self.interval)
        return pair is not None and (pair[0] < self.limit if self.at_least else pair[1] > self.limit)

    @model_validator(mode="after")
    def _verdict_fits(self) -> Budget:
        if (self.measured is None) != (self.verdict == "not measured"):
            raise ValueError(f"budget {self.name!r}: verdict {self.verdict!r} with measured {self.measured}")
        if self.measured is not None:
            spare = 1e-9 * max(abs(self.limit), 1.0)
            gap = self.limit - self.measured if self.at_least else self.measured - self.limit
            if self.verdict == "holds" and gap > spare:
                raise ValueError(f"budget {self.name!r}: {self.measured} is not {self.direction} {self.limit}")
            if self.verdict == "broken" and gap < -spare and not self.crosses:
                raise ValueError(f"budget {self.name!r}: {self.measured} is {self.direction} {self.limit}, yet broken")
        return self


class Scores(Part):
    map: Points | None = None
    ap50: Points | None = None
    ap75: Points | None = None
    small: Points | None = None
    medium: Points | None = None
    large: Points | None = None
    recall: Points | None = None
    precision: Points | None = None
    threshold: float | None = None
    per_class: PerClass | None = None
    recall_per_class: PerClass | None = None
    top1: Points | None = None
    top5: Points | None = None


class Accuracy(Part):
    metric: str = "mAP"
    reference: str | None = None
    original: Scores = Scores()
    compressed: Scores = Scores()
    drop: float | None = None
    interval: Interval | None = None
    boxes_per_class: dict[str, Count] | None = None
    agreement: dict[str, Any] | None = None


class Operating(Part):
    original: float
    compressed: float
    images: Count | None = None
    why: str | None = None
    recall: Annotated[list[Points | None], Field(min_length=3, max_length=3)] | None = None
    precision: Annotated[list[Points | None], Field(min_length=3, max_length=3)] | None = None


class Speed(Part):
    label: str
    target: str | None = None
    median_ms: Positive | None = None
    p90_ms: Positive | None = None
    qps: Positive | None = None
    load_ms: Positive | None = None
    peak_mb: Positive | None = None
    file_bytes: Count | None = None
    ratio: Positive | None = None
    ratio_spread: Interval | None = None
    samples: Count | None = None
    dropped: Count | None = None
    end_to_end_ms: Positive | None = None


class Size(Part):
    original: dict[str, Count]
    compressed: dict[str, Count]


class Candidate(Part):
    name: str
    variant: str | None = None
    distance: float | None = None
    drop: float | None = None
    bytes: Count | None = None
    ratio: Positive | None = None
    seconds: Positive | None = None
    chosen: bool = False
    why: str | None = None


class TrainingPart(Part):
    candidate: str
    shipped: bool = False
    teacher: str | None = None
    steps: Count
    best_step: Count
    averaged: bool = False
    stopped: str | None = None
    seconds: Positive | None = None
    peak_mb: Positive | None = None
    images: Count | None = None
    watched: Count | None = None
    held_out: Count | None = None
    settings: dict[str, Any] | None = None
    distances: Interval | None = None
    held_out_distance: Interval | None = None
    drop: Interval | None = None
    loss: list[Interval] | None = None
    distance: list[Interval] | None = None
    distance_of_average: list[Interval] | None = None


class Allocation(Part):
    name: str
    variant: str | None = None
    bytes: Count
    predicted: Positive | None = None
    measured: Positive | None = None
    drop: float | None = None
    chosen: bool = False
    recipe: str | None = None


class Sensitivity(Part):
    layer: str
    metric: str | None = None
    value: float | None = None
    cost_rank: Count | None = None
    kept_float: bool = False


class Layer(Part):
    name: str
    op: str | None = None
    output: str | None = None
    shape: list[int | str | None] | None = None
    macs: Count | None = None
    parameters: Count | None = None
    placement: Literal["int8", "float", "int8 storage"] | None = None
    sqnr_db: float | None = None
    local_sqnr_db: float | None = None
    cosine: float | None = None
    max_error: float | None = None
    why: str | None = None


class StepPart(Part):
    name: str
    seconds: Positive | None = None
    detail: str | None = None


class Report(Part):
    """The whole report; the module text says what each key means."""

    roadworthy: str
    created: str
    command: str | None = None
    seconds: Positive | None = None
    verdict: Literal["hold", "broken"]
    summary: list[str]
    warnings: list[str] = []
    original: Original
    result: Result
    task: TaskPart | None = None
    data: Data | None = None
    budgets: list[Budget]
    accuracy: Accuracy | None = None
    operating: Operating | None = None
    speed: list[Speed] | None = None
    size: Size | None = None
    candidates: list[Candidate] | None = None
    training: TrainingPart | None = None
    pareto: list[Allocation] | None = None
    sensitivity: list[Sensitivity] | None = None
    layers: list[Layer] | None = None
    steps: list[StepPart] | None = None
    environment: dict[str, Any] | None = None
    recipe: str | None = None
    seed: int | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Report:
        verdicts = [b.verdict for b in self.budgets]
        if self.verdict == "hold" and "broken" in verdicts:
            raise ValueError("the verdict is 'hold', but a budget is broken")
        if self.verdict == "broken" and set(verdicts) <= {"holds"}:
            raise ValueError("the verdict is 'broken', but no budget is")
        a, b, ratio = self.original.bytes, self.result.bytes, self.result.size_ratio
        if a and b and ratio is not None and abs(ratio * b / a - 1) > 0.02:
            raise ValueError(f"result.size_ratio is {ratio}, but {a} / {b} bytes is {a / b:.3f}")
        acc = self.accuracy
        before, after = headline(acc) if acc else (None, None)
        if acc and None not in (before, after, acc.drop) and abs(before - after - acc.drop) > 0.02:  # type: ignore[operator]
            raise ValueError(f"accuracy.drop is {acc.drop}, but {acc.metric} went from {before} to {after}")
        return self


def ends(interval: Sequence[float | None] | None) -> tuple[float, float] | None:
    low, high = interval or (None, None)
    return None if low is None or high is None else (low, high)


def headline(accuracy: Accuracy) -> tuple[float | None, float | None]:
    key = HEADLINE.get(accuracy.metric, "")
    return getattr(accuracy.original, key, None), getattr(accuracy.compressed, key, None)


def clean(value: Any, where: str = "report") -> Any:
    """Plain JSON values: NumPy scalars and arrays, tuples, paths and dataclasses converted, NaN and infinity None.

    Raises ValueError naming the place of anything else.
    """
    if value is None or isinstance(value, (bool, np.bool_)):
        return None if value is None else bool(value)
    if isinstance(value, (str, PurePath)):
        return str(value).encode("utf-8", "replace").decode()  # a file name may hold lone surrogates
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.ndarray):
        return clean(value.tolist(), where)
    if is_dataclass(value) and not isinstance(value, type):
        return clean(asdict(value), where)
    if isinstance(value, Mapping):
        return {str(clean(k, where)): clean(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v, f"{where}[{i}]") for i, v in enumerate(value)]
    raise ValueError(f"{where} holds a {type(value).__name__}, which JSON cannot carry")


def parse(plain: dict[str, Any]) -> Report:
    try:
        return Report.model_validate(plain)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
        raise ValueError(f"report{place}: {first['msg']}") from None


def validate(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report as plain JSON values, checked against the schema above.

    Raises ValueError naming the first key at fault: an unknown key, a wrong type or a contradiction.
    """
    plain: dict[str, Any] = clean(report)
    parse(plain)
    return plain
