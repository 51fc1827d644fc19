"""What a target with tables leaves open, decided by expected squared errors on the calibration histograms.

Input image     its 256 levels are known from the preprocessing; of the 256 zero points that with the least error on
                exactly these levels is taken. Raw 0..255 gets scale 1 and zero point 0, which loses nothing.
Concat          an input shares the encoding of the result, and is then written in place, where nobody else reads it,
                or where that at most multiplies its error by SHARE. Else it is translated from code to code.
Activation      a layer gets a table, and its value p in front of the activation f codes of its own, where

                    E (y(f(p')) - f(p))^2  <=  TABLE * E (y(f(p)) - f(p))^2        p' = p rounded, y() = rounding to
                    max over lo..hi of |y(f(p')) - y(f(p))|  <=  1 code             the codes of the result, f cut
                                                                                   to their range
                with the range of p' that makes the first left side least; else f is computed on the accumulator (FINE
                or POLY). Behind a depthwise layer SAVES times as much is accepted.
                The maximum as well, because a mean forgets the few large values, and those are the objects.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from roadworthy.data.preprocess import Preprocess
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding, QuantSpec, scales_of_ranges
from roadworthy.model.model import Model
from roadworthy.model.units import Unit, units
from roadworthy.quantize.curve import Curve
from roadworthy.quantize.observers import FACTORS
from roadworthy.quantize.place import Placement, before_activation
from roadworthy.quantize.statistics import Statistics
from roadworthy.run.arithmetic import is_depthwise

SHARE = 4.0
TABLE = 2.0
SAVES = 2.0
"""Behind a depthwise layer, which does little else, a table saves most of the time: more error is accepted there."""
MOST_CODES = 1
ACROSS = 512
SPEC = QuantSpec()


def refine(
    model: Model,
    placement: Placement,
    statistics: Mapping[str, Statistics],
    activations: Mapping[str, Encoding],
    share: float = SHARE,
    table: float = TABLE,
) -> dict[str, Encoding]:
    """The encodings with all three decided."""
    own = {origin: activations[origin] for origin in dict.fromkeys(placement.source.values())}
    image = model.input_name
    if model.task is not None and own.get(image) is not None and own[image].axis is None:
        own[image] = image_encoding(model.task.preprocess)
    own = share_merges(model, placement, statistics, own, share)
    found = {name: own[origin] for name, origin in placement.source.items()}
    of_output = {str(u.output.name): u for u in units(model.ir)}
    for before, behind in placement.tables.items():
        unit = of_output[behind]
        most = table * SAVES if is_depthwise(unit) else table
        made = table_encoding(model, unit, statistics[before], found[behind], most)
        if made is not None:
            found[before] = made
    return found


def image_encoding(preprocess: Preprocess) -> Encoding:
    """One scale for all channels that represents the levels an image can have best; all of them are in range."""
    mean, std = (np.asarray(v, np.float64).reshape(-1, 1) for v in (preprocess.mean, preprocess.std))
    levels = np.unique((np.arange(256) * preprocess.scale - mean) / std)
    lo, hi = min(levels[0], 0.0), max(levels[-1], 0.0)
    zero = np.arange(256)
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.where(zero > 0, -lo / zero, 0.0 if lo == 0 else np.inf)
        above = np.where(zero < 255, hi / (255 - zero), 0.0 if hi == 0 else np.inf)
    scale = np.maximum(below, above).astype(np.float32)
    usable = np.isfinite(scale) & (scale > 0)
    candidates = [Encoding(s, np.asarray(z, np.int64)) for s, z in zip(scale[usable], zero[usable])]
    errors = [float(np.square(e.fake(levels).astype(np.float64) - levels).mean()) for e in candidates]
    return candidates[int(np.argmin(errors))]


def expected_error(stats: Statistics, encoding: Encoding) -> float:
    """Mean squared error of a tensor under a per-tensor encoding."""
    used = stats.hist > 0
    centres = np.clip(stats.centres[used], stats.lo, stats.hi)
    return float(np.average(np.square(encoding.fake(centres) - centres), weights=stats.hist[used]))


def share_merges(
    model: Model,
    placement: Placement,
    statistics: Mapping[str, Statistics],
    own: Mapping[str, Encoding],
    share: float,
) -> dict[str, Encoding]:
    """The encodings of origins, with those of Concats' inputs replaced where they are shared.

    Concats are visited from the last to the first, so that one within another finds its final encoding.
    """
    found = dict(own)
    readers = _readers(model, placement)
    joined: set[str] = set()
    for out, sources in placement.merges.items():
        target = placement.source[out]
        for origin in dict.fromkeys(placement.source[s] for s in sources if s in placement.source):
            fixed = origin == target or origin in joined or origin == model.input_name
            if fixed or found[origin].axis is not None or found[target].axis is not None:
                continue
            alone = readers.get(origin) == {out}
            stats = statistics[origin]
            if alone or expected_error(stats, found[target]) <= share * expected_error(stats, found[origin]):
                found[origin] = found[target]
                joined.add(origin)
    return found


def _readers(model: Model, placement: Placement) -> dict[str, set[str]]:
    """Origin -> first outputs of the operators that read it or a value with its codes, moving operators left out."""
    found: dict[str, set[str]] = {}
    values = g.values(model.ir)
    for name, origin in placement.source.items():
        readers = found.setdefault(origin, set())
        for use in values[name].uses():
            outs = [str(v.name) for v in use.node.outputs]
            if not any(placement.source.get(o) == origin for o in outs):
                readers.add(outs[0])
        if values[name].is_graph_output():
            readers.add("")
    return found


def table_encoding(
    model: Model, unit: Unit, stats: Statistics, result: Encoding, most: float = TABLE
) -> Encoding | None:
    """The encoding of the value in front of a unit's activation, or None where a table would lose too much.

    result: the encoding of the unit's output.   most: by what factor a table may raise the expected error.
    """
    used = stats.hist > 0
    if most < 1 or not used.any():
        return None
    # The histogram's bins with their weights, and the whole range with none: there only the largest error counts.
    centres = np.concatenate(
        [np.clip(stats.centres[used], stats.lo, stats.hi), np.linspace(stats.lo, stats.hi, ACROSS)]
    )
    weights = np.concatenate([stats.hist[used] / max(stats.hist.sum(), 1.0), np.zeros(ACROSS)])
    curve = Curve(model.ir, unit, before_activation(unit))
    # What the result cuts off is lost with a table or without, and would hide what the table adds.
    true = np.clip(curve(centres), *result.range)
    wanted = result.quantize(true).astype(np.int64)
    exact = float(np.square(result.dequantize(wanted) - true) @ weights)
    lo, hi = min(stats.lo, 0.0), max(stats.hi, 0.0)
    below, above = (a.reshape(-1) for a in np.meshgrid(FACTORS[::3], FACTORS[::3]))
    best: Encoding | None = None
    least = np.inf
    for part in np.array_split(np.arange(len(below)), max(len(below) // 64, 1)):
        scale, zero = scales_of_ranges(lo * below[part], hi * above[part], SPEC)
        steps, zeros = scale.astype(np.float64)[:, None], zero[:, None]
        table = result.quantize(curve((np.arange(256) - zeros) * steps)).astype(np.int64)  # ranges, codes
        codes = np.clip(np.rint(centres / steps) + zeros, 0, 255).astype(np.int64)
        made = np.take_along_axis(table, codes, 1)
        worst = np.abs(made - wanted).max(1)
        errors = np.where(worst <= MOST_CODES, np.square(result.dequantize(made) - true) @ weights, np.inf)
        k = int(errors.argmin())
        if errors[k] < least:
            least, best = float(errors[k]), Encoding(scale[k], zero[k])
    return best if least <= most * exact else None
