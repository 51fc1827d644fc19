"""Two runners of one network, value by value: by how much they differ, whatever they are.

    off       max |b - a|                       relative   off / max |a|
    rms       sqrt(sum (b - a)^2 / sum a^2)     equal      a == b everywhere

`relative` is what "within 1e-4" means for float runners. A bound per element, |b - a| / |a|, has no meaning where a
passes through zero. Both runners round every operation, each in its own order, and neither is the truth; a pair of
float32 runners that are both right differs by about twice what one of them is off a float64 run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import InputError
from roadworthy.run.runner import Runner


@dataclass
class Agreement:
    """One value over all images; see the top.   name: of the value.   largest: max |a|.   images: how many."""

    name: str
    off: float = 0.0
    largest: float = 0.0
    equal: bool = True
    images: int = 0
    _squares: float = 0.0
    _signal: float = 0.0

    @property
    def relative(self) -> float:
        return self.off / self.largest if self.largest else (0.0 if self.equal else np.inf)

    @property
    def rms(self) -> float:
        return float(np.sqrt(self._squares / self._signal)) if self._signal else (0.0 if self.equal else np.inf)

    def add(self, a: NDArray, b: NDArray) -> None:
        """One more image. Raises InputError where the shapes differ."""
        if a.shape != b.shape:
            raise InputError(f"{self.name!r} has the shape {a.shape} in one runner and {b.shape} in the other")
        self.images += 1
        same = bool(np.array_equal(a, b))
        self.equal &= same
        if not a.size:
            return
        x = a.astype(np.float64)
        d = np.zeros_like(x) if same else b.astype(np.float64) - x
        # NaN on one side is a difference without bound; np.maximum passes it on, max() would not.
        self.off = float(np.maximum(self.off, np.nan_to_num(np.abs(d), nan=np.inf).max()))
        self.largest = max(self.largest, float(np.nan_to_num(np.abs(x)).max()))
        self._squares += float((d * d).sum())
        self._signal += float((x * x).sum())


def compare_runners(
    a: Runner,
    b: Runner,
    tensors: Iterable[NDArray],
    names: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> tuple[Agreement, ...]:
    """Compare b with a on each tensor, in memory that does not grow with their number.

    tensors: in the model's input shape, fed to the first input of each.   names: values to compare beside the outputs,
    by the names of a; all are compared under the same name.   progress: called with the number of images done.
    Raises InputError without tensors and where outputs or shapes differ, KeyError for a name that a runner lacks.
    """
    if set(a.output_names) != set(b.output_names):
        raise InputError(
            f"one runner gives {', '.join(a.output_names)}, the other {', '.join(b.output_names)}; only two runners of"
            " one network can be compared"
        )
    found = {name: Agreement(name) for name in (*a.output_names, *names)}
    images = 0
    for x in tensors:
        one, other = (runner.run({runner.input_names[0]: x}, tuple(names)) for runner in (a, b))
        for name, agreement in found.items():
            agreement.add(one[name], other[name])
        images += 1
        if progress:
            progress(images)
    if not images:
        raise InputError("there is nothing to compare on; hand in at least one input tensor")
    return tuple(found.values())
