"""Budgets: what a compressed model may lose. Each is data: a kind, a limit, and for some kinds a class or a size.

`KINDS` says what each kind measures on which tasks. A wish ("person=0.5") becomes a `Budget` once the task and the test
images are known; what no test image can tell is "not measured", which is said aloud and never counts as held.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roadworthy.detect.evaluate import SIZES, Interval
from roadworthy.detect.figures import Drops, Figures
from roadworthy.errors import InputError
from roadworthy.model.task import Task

EVERY = "*"
"""In place of a class or a size: each of them that has LEAST_LABELS."""
LEAST_LABELS = 20
"""Labels of a class from which on a limit for every class holds for it; with fewer, one object moves AP by points."""

Wishes = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Kind:
    """A row of KINDS.

    option: what a user writes.   tasks: on which it can be measured ("detector", "classifier").   value: the figure;
    None where no label tells.   interval: that of its drop.
    """

    option: str
    tasks: tuple[str, ...]
    metric: Mapping[str, str]
    name: str
    value: Callable[[Figures, Any], float | None]
    interval: Callable[[Drops, Any], Interval | None]


BOTH, DETECTOR = ("detector", "classifier"), ("detector",)
KINDS: dict[str, Kind] = {
    "whole": Kind("--max-drop", BOTH, {"detector": "mAP", "classifier": "top-1"}, "accuracy drop",
                  lambda f, _: f.whole, lambda d, _: d.whole),
    "class": Kind("--max-drop-class", BOTH, {"detector": "AP of one class", "classifier": "top-1 of one class"},
                  "drop of class {0}", lambda f, c: f.per_class.get(c), lambda d, c: d.per_class.get(c)),
    "size": Kind("--max-drop-size", DETECTOR, {"detector": "mAP of one size"}, "drop of {0} objects",
                 lambda f, s: f.sizes.get(s), lambda d, s: d.sizes.get(s)),
    "recall": Kind("--max-drop-recall", DETECTOR, {"detector": "recall at the operating threshold"}, "drop of recall",
                   lambda f, _: f.recall, lambda d, _: d.recall),
}  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """Most points that may be lost.   kind: a key of KINDS.   which: a class index or a size; None where the kind has
    no such thing, or where no class (size) has labels enough.   called: how `which` is called.   labels: how many of
    it the test images show."""

    kind: str
    limit: float
    which: int | str | None = None
    called: str = ""
    labels: float | None = None

    @property
    def name(self) -> str:
        return KINDS[self.kind].name.format(self.called)


@dataclass(frozen=True)
class Verdict:
    """A budget and what was lost, in points; None where it could not be measured."""

    budget: Budget
    drop: float | None

    @property
    def word(self) -> str:
        if self.drop is None:
            return "not measured"
        return "holds" if self.drop <= self.budget.limit else "broken"


def judge_all(budgets: Sequence[Budget], before: Figures, after: Figures) -> tuple[Verdict, ...]:
    """What became of each budget."""
    return tuple(Verdict(b, _lost(b, before, after)) for b in budgets)


def _lost(budget: Budget, before: Figures, after: Figures) -> float | None:
    if budget.labels == 0:
        return None
    a, b = (KINDS[budget.kind].value(f, budget.which) for f in (before, after))
    return None if a is None or b is None or not math.isfinite(a - b) else a - b


def row(verdict: Verdict, drops: Drops | None, task: Task, reference: str) -> dict[str, Any]:
    """The row of the report.   drops: with the intervals.   reference: what the figures were held against."""
    budget, kind = verdict.budget, KINDS[verdict.budget.kind]
    interval = None if drops is None or verdict.drop is None else kind.interval(drops, budget.which)
    notes = []
    if verdict.drop is None:
        notes.append(_why_not(budget, reference))
    elif budget.labels is not None and budget.labels < LEAST_LABELS:
        notes.append(f"on {_count(budget.labels)} only: a single object moves this by points")
    elif budget.labels is not None:
        notes.append(f"on {_count(budget.labels)}")
    if reference != "labels":
        notes.append(f"without labels: against {reference}")
    return {
        "name": budget.name,
        "metric": kind.metric["detector" if task.is_detector else "classifier"],
        "limit": budget.limit,
        "measured": verdict.drop,
        "interval": None if interval is None else [interval.low, interval.high],
        "unit": "points",
        "direction": "at most",
        "verdict": verdict.word,
        "note": "; ".join(notes) or None,
    }


def _count(labels: float) -> str:
    return f"{labels:.0f} label{'' if round(labels) == 1 else 's'}"


def _why_not(budget: Budget, reference: str) -> str:
    if budget.which is None:
        return f"none has {LEAST_LABELS} labels on the test images; give more images"
    if reference == "labels":
        return "no test image has a label of it that counts; give images that show it"
    return "the original finds none on the test images; give images that show it"


# From wishes to budgets


def wishes(option: str, given: Sequence[str]) -> Wishes:
    """`("person=0.5", "2")` as `(("person", 0.5), ("*", 2.0))`. Raises InputError naming what is no number or twice."""
    found: list[tuple[str, float]] = []
    for text in given:
        name, equals, number = text.rpartition("=")
        try:
            limit = float(number)
        except ValueError:
            raise InputError(
                f"{option} {text!r} does not end in a number; write NAME=POINTS, or POINTS alone for every one"
            ) from None
        if equals and not name.strip():
            raise InputError(f"{option} {text!r} names nothing before the `=`; write NAME=POINTS")
        found.append((name.strip() if equals else EVERY, limit))
    return tuple(found)


def check_wishes(option: str, given: Wishes) -> None:
    """Raises InputError for points outside 0..100 and for what is limited twice."""
    seen = set()
    for name, limit in given:
        told = option if name == EVERY else f"{option} {name}"
        if not 0 <= limit <= 100:
            raise InputError(f"{told} is {limit:g}; give points between 0 and 100")
        if name in seen:
            raise InputError(f"{told} is given twice; give it once")
        seen.add(name)


def budgets_for(
    task: Task,
    labels: Mapping[int, float],
    sizes: Mapping[str, float],
    per_class: Wishes = (),
    per_size: Wishes = (),
    recall: float | None = None,
    source: str = "the task of the model",
) -> tuple[Budget, ...]:
    """The budgets that these wishes mean for a task and its test images, those of every class largest count first.

    labels: class -> labels on the test images (absent: none).   sizes: size -> the same.   source: what names the
    classes.   Raises InputError for an unknown class or size, and for a wish that the task cannot be held to.
    """
    side = "detector" if task.is_detector else "classifier" if task.decode.kind == "classify" else "raw"
    for kind, wish in (("class", per_class), ("size", per_size), ("recall", () if recall is None else (recall,))):
        if wish and side not in KINDS[kind].tasks:
            least = "its budget is --min-sqnr" if side == "raw" else "leave it out"
            raise InputError(f"{KINDS[kind].option} cannot be measured on a {task.decode.kind} task; {least}")
    found: list[Budget] = []
    if per_class:
        names = {index: name for index, name in enumerate(task.names)}
        limits: dict[Any, float] = {_class_index(n, task, source): limit for n, limit in per_class if n != EVERY}
        found += _expand("class", limits, dict(per_class).get(EVERY), names, labels)
    if per_size:
        for name, _ in per_size:
            if name not in (*SIZES, EVERY):
                raise InputError(f"--max-drop-size names the size {name!r}; known are {', '.join(SIZES)}")
        limits = {n: limit for n, limit in per_size if n != EVERY}
        found += _expand("size", limits, dict(per_size).get(EVERY), {s: s for s in SIZES}, sizes)
    if recall is not None:
        found.append(Budget("recall", recall))
    return tuple(found)


def _expand(
    kind: str, limits: Mapping[Any, float], every: float | None, names: Mapping[Any, str], labels: Mapping[Any, float]
) -> list[Budget]:
    """The named ones, then each other that has labels enough, the most labels first."""
    found = [Budget(kind, limit, w, names[w], labels.get(w, 0)) for w, limit in limits.items()]
    if every is not None:
        rest = sorted(
            (w for w in names if w not in limits and labels.get(w, 0) >= LEAST_LABELS), key=lambda w: -labels[w]
        )
        found += [Budget(kind, every, w, names[w], labels[w]) for w in rest]
        if not rest and not limits:
            called = f"with at least {LEAST_LABELS} labels"
            found.append(Budget(kind, every, None, called, 0))
    return found


def _class_index(name: str, task: Task, source: str) -> int:
    names = task.names
    plain = [n.strip().lower() for n in names]
    wanted = name.strip().lower()
    if wanted in plain:
        return plain.index(wanted)
    if name.isdigit() and int(name) < len(names):
        return int(name)
    near = (
        [names[plain.index(n)] for n in difflib.get_close_matches(wanted, plain, 3)] if task.decode.class_names else []
    )
    known = f"the {len(names)} classes that {source} names" if task.decode.class_names else f"0 to {len(names) - 1}"
    some = f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}" if task.decode.class_names else ""
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"they are {some}"
        if some
        else ("the classes have no names, as neither the model nor the data gives any")
    )
    raise InputError(f"--max-drop-class {name!r} is not among {known}; {hint}")
