"""Recipes: written, read back, refused, and applied."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from onnx_graphs import N, build, rand
from roadworthy.data.preprocess import Preprocess
from roadworthy.data.samples import Sample, Samples
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import to_qdq
from roadworthy.model.task import Task
from roadworthy.recipe import STEPS, Calibration, CorrectBias, Fold, Quantize, Recipe, StoreWeights, read_recipe
from roadworthy.steps.settings import Checked

RECIPE = Recipe((Fold(), Quantize("openvino", "kl", keep_float=("a", "b")), CorrectBias()), images=9, seed=4)


def small() -> Model:
    weights = {
        "w": rand(8, 3, 3, 3) / 5, "v": rand(6, 8, 3, 3) / 8, "g": np.abs(rand(8)), "b": rand(8), "m": rand(8),
        "s": np.abs(rand(8, seed=1)) + 0.5,
    }  # fmt: skip
    nodes = [
        N("Conv", ["x", "w"], ["a"], name="stem"),
        N("BatchNormalization", ["a", "g", "b", "m", "s"], ["n"]),
        N("Relu", ["n"], ["r"]),
        N("Conv", ["r", "v"], ["c"], name="last"),
        N("GlobalAveragePool", ["c"], ["y"]),
    ]
    task = Task(Preprocess((16, 16), "stretch", scale=1 / 255), DecodeSpec("raw"))
    return load(build(nodes, weights, (1, 3, 16, 16)), task)


def pictures(count: int = 6) -> Samples:
    def picture(k: int) -> Sample:
        pixels = np.random.default_rng(k).integers(0, 256, (20, 24, 3), np.uint8)
        return Sample(f"{k}.png", load=lambda: pixels, key=str(k))

    return Samples([picture(k) for k in range(count)])


@pytest.mark.parametrize("recipe", [RECIPE, Recipe((StoreWeights(wide=("x",)),)), Recipe(())])
def test_yaml_and_back(recipe: Recipe, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml({"model": "abc"}))
    assert read_recipe(path) == (recipe, {"model": "abc"})


def test_every_step_is_written_by_its_name_and_read_back(tmp_path: Path):
    for name, kind in STEPS.items():
        path = tmp_path / "recipe.yaml"
        path.write_text(f"version: 1\nsteps: [{name}]\n")
        assert read_recipe(path)[0] == Recipe((kind(),))
        assert all(f.default is not None for f in fields(kind))


BAD = {
    "steps: [": "is not YAML",
    "version: 1": "needs a list `steps`",
    "- 3": "needs a list `steps`",
    "version: 2\nsteps: []": "is of version 2",
    "steps: []": "is of version None",
    "version: 1\nsteps: []\nimagse: 3": "unknown key `imagse`",
    "version: 1\nsteps: []\n3: 4\nx: 5": "unknown key",
    "version: 1\nsteps: []\nimages: many": "`images` in the recipe .* must be a whole number",
    "version: 1\nsteps: []\nimages: true": "`images` in the recipe .* must be a whole number",
    "version: 1\nsteps: []\nimages: 0": "`images` in the recipe .* must be a whole number from 1 up",
    "version: 1\nsteps: []\nseed: -1": "`seed` in the recipe .* must be a whole number",
    "version: 1\nsteps: []\nmade_with: 3": "`made_with` in the recipe .* must be a mapping",
    "version: 1\nsteps: [melt]": "unknown step `melt`; known are fold, ",
    "version: 1\nsteps: [3]": "each step of the recipe",
    "version: 1\nsteps: [[fold]]": "each step of the recipe",
    "version: 1\nsteps: [{fold: {}, quantize: {}}]": "each step of the recipe",
    "version: 1\nsteps: [{quantize: 3}]": "`quantize` in the recipe .* must be followed by settings",
    "version: 1\nsteps: [{quantize: {bit: 4}}]": "`quantize.bit` .* is unknown; known are target",
    "version: 1\nsteps: [{quantize: {target: tpu}}]": "`quantize.target` .* is 'tpu'; known are ort, openvino",
    "version: 1\nsteps: [{quantize: {observer: best}}]": "is 'best'; known are minmax",
    "version: 1\nsteps: [{quantize: {weight_observer: kl}}]": "is 'kl'; known are minmax, mse",
    "version: 1\nsteps: [{quantize: {target: 3}}]": "must be a word",
    "version: 1\nsteps: [{quantize: {keep_float: stem}}]": "must be a list of layer names",
    "version: 1\nsteps: [{quantize: {keep_float: [1]}}]": "must be a list of layer names",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_recipe_is_refused_by_name(text: str, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=BAD[text]) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


IMPOSSIBLE = [
    (Quantize, {"weight_bits": 9}, r"`Quantize.weight_bits` is 9; give numbers from 2 to 8"),
    (Quantize, {"weight_bits": "4"}, r"`Quantize.weight_bits` must be a whole number"),
    (Quantize, {"grid": "logarithmic"}, r"`Quantize.grid` is 'logarithmic'; known are linear"),
    (Quantize, {"keep_float": "stem"}, r"`Quantize.keep_float` must be a tuple of layer names"),
    (Quantize, {"bits": {"stem": 4}}, r"`Quantize.bits` must be a tuple of names with whole numbers"),
    (Quantize, {"bits": (("stem", 1),)}, r"`Quantize.bits` is 1; give numbers from 2 to 8"),
    (StoreWeights, {"weight_observer": "kl"}, r"`StoreWeights.weight_observer` is 'kl'; known are"),
    (STEPS["round"], {"method": "up"}, r"`Round.method` is 'up'; known are"),
    (STEPS["round"], {"images": 0}, r"`Round.images` is 0; give numbers from 1"),
    (STEPS["round"], {"refit": 1}, r"`Round.refit` must be True or False"),
    (STEPS["smooth"], {"alpha": float("nan")}, r"`Smooth.alpha` is nan; give numbers from 0 to 1"),
    (STEPS["equalize"], {"tolerance": 2}, r"`Equalize.tolerance` is 2; give numbers from 0 to 1"),
    (STEPS["set_threshold"], {"value": -0.1}, r"`SetThreshold.value` is -0.1; give numbers from 0 to 1"),
    (CorrectBias, {"method": "both"}, r"`CorrectBias.method` is 'both'; known are"),
]


@pytest.mark.parametrize(("kind", "settings", "told"), IMPOSSIBLE)
def test_a_step_cannot_be_made_with_a_setting_that_means_nothing(kind, settings, told: str):
    with pytest.raises(InputError, match=told):
        kind(**settings)


def test_every_step_is_checked_when_it_is_made():
    assert all(issubclass(kind, Checked) for kind in STEPS.values())


def test_a_recipe_that_cannot_be_opened(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\xff")
    with pytest.raises(InputError, match=r"cannot be read|is not YAML"):
        read_recipe(tmp_path / "binary.yaml")


@pytest.mark.parametrize("step", [Quantize("ort", keep_float=("stme",)), StoreWeights(wide=("stme",))])
def test_a_layer_that_the_model_does_not_have(step):
    with pytest.raises(InputError, match="'stme', which the model does not have"):
        step(small(), pictures())


def test_applying_is_repeatable_and_leaves_the_model_alone():
    model = small()
    before = model.float_bytes()
    recipe = Recipe((Fold(), Quantize("ort"), CorrectBias()), images=4)
    first = to_qdq(recipe.apply(model, pictures()))
    Calibration.forget()
    assert to_qdq(recipe.apply(small(), pictures())) == first
    assert model.float_bytes() == before and not model.encodings and not model.history
    assert to_qdq(Recipe(recipe.steps, images=3).apply(model, pictures())) != first


def test_steps_share_one_look_at_the_images():
    looks = []

    def watched(k: int) -> Sample:
        pixels = np.random.default_rng(k).integers(0, 256, (20, 24, 3), np.uint8)
        return Sample(f"{k}.png", load=lambda: looks.append(k) or pixels, key=f"watched {k}")  # type: ignore[func-returns-value]

    Calibration.forget()
    samples = Samples([watched(k) for k in range(4)])
    model = Fold()(small(), samples)
    for step in (Quantize("ort"), Quantize("ort", "kl", keep_float=("last",))):
        CorrectBias()(step(model, samples), samples)
    assert sorted(looks) == [0, 1, 2, 3]


def test_history_says_what_was_done():
    history = Recipe((Fold(), Quantize("ort"), CorrectBias()), 4).apply(small(), pictures()).history
    assert len(history) == 3 and history[0].startswith("fold") and history[-1] == "correct bias"


def test_storing_weights_needs_no_images():
    model = StoreWeights(wide=("last",), float_weights=())(small(), Samples([]))
    assert {k: (e.bits, e.storage) for k, e in model.encodings.items()} == {"w": (8, True), "v": (16, True)}
    assert len(StoreWeights(float_weights=("stem", "last"))(small(), Samples([])).encodings) == 0


def test_calibration_needs_a_task():
    nodes = [N("Conv", ["x", "w"], ["y"])]
    with pytest.raises(InputError, match=r"needs the task of the model; rw\.settle\(model, dataset\) finds it"):
        Quantize("ort")(load(build(nodes, {"w": rand(4, 3, 3, 3)})), pictures())


def test_the_task_enters_the_calibration():
    model = small()
    assert model.task is not None
    bright = model.with_task(Task(Preprocess((16, 16), "stretch", scale=1.0), model.task.decode))
    dim = Quantize("ort")(model, pictures()).encodings["x"].scale
    assert Quantize("ort")(bright, pictures()).encodings["x"].scale == pytest.approx(255 * dim, rel=1e-3)


def test_numbers_as_people_write_them(tmp_path: Path):
    """YAML 1.1 reads 1e-4 as a word."""
    (tmp_path / "r.yaml").write_text("version: 1\nsteps:\n- finetune: {lr: 1e-4}\n")
    assert read_recipe(tmp_path / "r.yaml")[0].steps[0].lr == 1e-4
