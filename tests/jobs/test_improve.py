"""What is tried on top of a plain int8 model: kept where it helps on held-out images, and only there."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small

from onnx_graphs import N, build
from roadworthy.check.judge import Judge
from roadworthy.data.readers import read
from roadworthy.data.samples import Samples
from roadworthy.errors import InputError
from roadworthy.jobs import search as searches
from roadworthy.jobs.improve import IMPROVEMENTS, Improvement, quantize_of, with_quantize
from roadworthy.jobs.search import Search, calibration_images, held_out_images
from roadworthy.jobs.trial import Ui
from roadworthy.model.model import Model, load
from roadworthy.model.task import task_from_yaml
from roadworthy.recipe import CorrectBias, Fold, Quantize, Round, Smooth
from roadworthy.run.targets import TARGETS
from roadworthy.steps import quantize

EVERY = frozenset({"quick", "normal", "thorough"})
native = pytest.mark.skipif(not TARGETS["native"].available(), reason="the native engine is not built")


def search_of(model: Model, images: Samples, target: str = "ort", effort: str = "normal") -> Search:
    assert model.task is not None
    judge = Judge.of(model.task, images, lambda: TARGETS["ort"].runner(model.float_bytes()), 0.5)
    return Search(model, model.task, images, judge, target, effort, 0, 1, Ui(), lambda _, __, work: work())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return small.place(tmp_path, 60)


RAW = f"""
preprocess: {{size_hw: [{small.SIDE}, {small.SIDE}], resize: stretch, color: rgb, scale: {1 / 255}}}
decode: {{kind: raw}}
"""


@pytest.fixture
def network(place: Path) -> Model:
    """Two layers with SiLU; the first has a channel that is nearly another, and the second sees their difference."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(8, 3, 1, 1)).astype(np.float32) * 4
    first[1] = first[0] * np.float32(1.01)
    second = np.eye(8, dtype=np.float32)[:, :, None, None].copy()
    second[:2, 0], second[:2, 1] = 40, -40
    last = rng.normal(size=(3, 8, 1, 1)).astype(np.float32) / 4
    nodes = [
        N("Conv", ["x", "w1"], ["a"], name="near"), N("Sigmoid", ["a"], ["sa"]), N("Mul", ["a", "sa"], ["p"]),
        N("Conv", ["p", "w2"], ["b"], name="open"), N("Sigmoid", ["b"], ["sb"]), N("Mul", ["b", "sb"], ["q"]),
        N("Conv", ["q", "w3"], ["y"], name="tell"),
    ]  # fmt: skip
    (place / "raw.yaml").write_text(RAW)
    made = load(build(nodes, {"w1": first, "w2": second, "w3": last}, (1, 3, small.SIDE, small.SIDE)))
    return made.with_task(task_from_yaml(place / "raw.yaml"))


SPLITS = [(278, 128, 32), (100, 80, 20), (30, 24, 6), (19, 19, 0), (1, 1, 0)]


@pytest.mark.parametrize(("count", "used", "held"), SPLITS)
def test_a_part_of_the_calibration_images_is_held_out(count: int, used: int, held: int):
    assert (calibration_images("normal", count), held_out_images("normal", count)) == (used, held)


def test_candidates_are_compared_on_images_that_nothing_was_calibrated_with(place: Path, network: Model):
    search = search_of(network, read(place / "unlabelled").calibration)
    calibrated = {s.name for s in search.recipe().choose(search.calibration)}
    held = {s.name for s in search.held_out}
    assert held and not held & calibrated
    few = search_of(network, search.calibration[:3])
    assert [s.name for s in few.held_out] == [s.name for s in few.calibration]


def test_what_helps_is_kept_and_what_harms_is_not(place: Path, network: Model, monkeypatch: pytest.MonkeyPatch):
    def ruined(search, best):  # three bits
        return with_quantize(best.recipe, weight_bits=3)

    def mended(search, best):
        return with_quantize(best.recipe, weight_bits=8)

    def nothing(search, best):
        return None

    def same(search, best):
        return replace(best.recipe, steps=(Fold(), *best.recipe.steps))

    steps = [("worse", ruined), ("not for this one", nothing), ("the same", same), ("better", mended)]
    steps.append(("worse again", ruined))
    monkeypatch.setattr(searches, "IMPROVEMENTS", tuple(Improvement(n, EVERY, f) for n, f in steps))
    search = search_of(network, read(place / "unlabelled").calibration)
    plain = search.build("plain", "int8", search.recipe(Quantize("ort", weight_bits=4)))
    plain.distance = search.distance(plain)
    best = search.improved(plain)
    assert quantize_of(best.recipe).weight_bits == 8
    told = {t.name: t.why for t in search.trials}
    assert told["int8, worse"].startswith("rejected: held-out distance")
    assert told["int8, better"].startswith("kept: held-out distance") and "improved on by better" in plain.why
    assert told["int8, the same"] == "rejected: it changes nothing in this network"
    assert told["int8, worse again"].startswith("rejected") and "int8, not for this one" not in told
    assert best.distance is not None and best.distance < plain.distance
    assert all(t.seconds > 0 for t in search.trials)


@native
def test_a_table_that_ruins_the_network_is_found_and_given_up(
    place: Path, network: Model, monkeypatch: pytest.MonkeyPatch
):
    """Tables are allowed whatever they cost their own layer, as behind a depthwise one they are up to a factor."""
    monkeypatch.setattr(quantize, "refine", functools.partial(quantize.refine, table=1e9))
    search = search_of(network, read(place / "unlabelled").calibration, "native")
    plain = search.plain_int8()
    assert plain is not None and {"a", "b"} <= set(plain.model.encodings), "there are tables to give up"
    best = search.improved(plain)
    noted = {s.layer: s.value for s in search.sensitivity}
    assert noted["near"] > 10 * noted["open"], "the first table is what harms"
    assert "near" in quantize_of(best.recipe).exact_activations
    assert "a" not in best.model.encodings
    assert best.distance < plain.distance


@native
def test_tables_that_cost_nothing_stay(place: Path, network: Model):
    search = search_of(network, read(place / "unlabelled").calibration, "native")
    plain = search.plain_int8()
    best = search.improved(plain)
    assert set(quantize_of(best.recipe).exact_activations) < {"near", "open", "tell"}
    assert best.distance <= plain.distance


@native
def test_exact_activations_are_no_tables(place: Path, network: Model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantize, "refine", functools.partial(quantize.refine, table=1e9))
    images = read(place / "unlabelled").calibration
    with_tables = Quantize("native")(network, images)
    without = Quantize("native", exact_activations=("open",))(network, images)
    assert {"a", "b"} <= set(with_tables.encodings)
    assert "a" in without.encodings and "b" not in without.encodings
    assert without.encodings["q"] == with_tables.encodings["q"]
    with pytest.raises(InputError, match="'gone', which the model does not have"):
        Quantize("native", exact_activations=("gone",))(network, images)


def test_layers_in_float_do_not_undo_the_improvements(place: Path, network: Model, monkeypatch: pytest.MonkeyPatch):
    """A budget that no int8 holds: what is tried then is the improved network with some layers in float."""
    search = search_of(network, read(place / "unlabelled").calibration)
    recipe = search.recipe(Smooth(0.5), Quantize("ort", "percentile"))
    best = search.build("int8, improved", "int8", recipe)
    monkeypatch.setattr(Search, "_measure_speed", lambda self, trials: None)
    search.judge.min_sqnr = 1000.0
    search._int8_under_budget(best)
    tried = [t for t in search.trials if "in float" in t.variant]
    assert tried
    for trial in tried:
        assert [type(s) for s in trial.recipe.steps] == [type(s) for s in recipe.steps]
        assert quantize_of(trial.recipe).observer == "percentile" and quantize_of(trial.recipe).float_weights


def test_learned_rounding_is_not_followed_by_measured_bias(place: Path, network: Model):
    search = search_of(network, read(place / "unlabelled").calibration)
    row = next(r for r in IMPROVEMENTS if r.name == "measured bias")
    rounded = search.build("", "int8", search.recipe(Quantize("ort"), Round(images=4)))
    plain = search.build("", "int8", search.recipe(Quantize("ort")))
    assert row.change(search, rounded) is None
    assert CorrectBias("empirical") in row.change(search, plain).steps


def test_it_is_said_when_nothing_could_be_held_out(place: Path, network: Model):
    few = search_of(network, read(place / "unlabelled").calibration[:6])
    plain = few.plain_int8()
    few.improved(plain)
    assert any("6 calibration images none could be held out" in line for line in few.warnings)


@native
def test_the_parts_of_a_plan_make_up_the_file(place: Path, network: Model):
    """Packed weights and constants that several layers share included."""
    from roadworthy.jobs.layer_rows import parts_of

    search = search_of(network, read(place / "unlabelled").calibration, "native")
    for bits in (8, 3):
        trial = search.build("", "int8", search.recipe(Quantize("native", weight_bits=bits)))
        parts = parts_of(trial)
        assert sum(parts.values()) == len(trial.deployed) and min(parts.values()) > 0
