"""Recipes as files: what they were made with, and whether one can be replayed here."""

from __future__ import annotations

import hashlib

from roadworthy import __version__
from roadworthy.check.judge import Judge
from roadworthy.check.machine import versions
from roadworthy.data.dataset import Dataset
from roadworthy.data.samples import Samples
from roadworthy.errors import InputError
from roadworthy.jobs.search import Search
from roadworthy.jobs.settings import Settings, refuse_latency
from roadworthy.jobs.training import build_trained
from roadworthy.jobs.trial import Trial
from roadworthy.model.model import Model
from roadworthy.model.units import units
from roadworthy.recipe import Fold, Quantize, Recipe, StoreWeights
from roadworthy.run.targets import TARGETS
from roadworthy.run.torch import need_torch


def replay_target(model: Model, recipe: Recipe, made_with: dict[str, str], settings: Settings) -> str:
    """The target that a recipe was made for; stored weights run anywhere. Refuses a recipe made for another model."""
    made_for = made_with.get("target")
    if "student_sha256" in made_with:
        raise InputError(
            f"the recipe {settings.recipe} trains a model that was given; replay it with roadworthy finetune MODEL"
            " --teacher ORIGINAL --recipe"
        )
    if recipe.training is not None:
        need_torch(f"the recipe {settings.recipe}, which trains,")
    known = {u.name for u in units(Fold()(model, Samples(())).ir)}
    for step in recipe.steps:
        names = [n for f in ("keep_float", "wide", "float_weights", "exact_activations") for n in getattr(step, f, ())]
        for name in (*names, *(n for n, _ in getattr(step, "bits", ()))):
            if name not in known:
                raise InputError(
                    f"the recipe {settings.recipe} names the layer {name!r}, which {model.source} does not have;"
                    " replay it on the model it was made for"
                )
    step = next((s for s in recipe.steps if isinstance(s, Quantize)), None)
    if step is not None:
        if settings.target not in ("auto", step.target):
            raise InputError(
                f"the recipe {settings.recipe} is for the target {step.target}, but --target is {settings.target};"
                " leave --target out"
            )
        if not TARGETS[step.target].available():
            raise InputError(f"the recipe {settings.recipe} cannot be replayed: {TARGETS[step.target].missing}")
        refuse_latency(step.target, settings.max_latency)
        return str(step.target)
    if settings.target != "auto":
        return settings.target
    return made_for if made_for in settings.targets else settings.targets[-1]


def replayed(search: Search, recipe: Recipe) -> Trial:
    """The candidate that a recipe makes."""
    variant = variant_of(recipe)
    if recipe.training is None:
        return search.build("replayed", variant, recipe)
    return build_trained(search, "replayed", variant, recipe)


def variant_of(recipe: Recipe) -> str:
    """What a recipe makes, in words."""
    step = next((s for s in recipe.steps if isinstance(s, Quantize | StoreWeights)), None)
    trained = ", trained" if recipe.training is not None else ""
    if step is None:
        return f"float{trained}"
    if isinstance(step, StoreWeights):
        return f"int8-stored weights{trained}"
    kept = len({*step.keep_float, *step.wide, *step.float_weights})
    return f"int8, {kept} layers in float{trained}" if kept else f"int8{trained}"


def judge_at_its_own(judge: Judge, trial: Trial) -> None:
    """A replayed recipe may bring a threshold of its own, at which its recall counts."""
    task = trial.model.task
    if trial.predictions is not None and task is not None:
        trial.judgement = judge(trial.predictions, task.decode.score_threshold)


def made_with(model: Model, dataset: Dataset, target: str) -> dict[str, str]:
    """What a recipe was made with; replaying compares it."""
    assert model.task is not None
    return {
        "target": target,
        "model_sha256": model.sha256,
        "data": dataset.calibration.content_id,
        "task_sha256": hashlib.sha256(model.task.to_json().encode()).hexdigest(),
        "roadworthy": __version__,
        "onnxruntime": versions().get("onnxruntime", ""),
    }


def recipes_of(model: Model, dataset: Dataset, searches: list[Search]) -> dict[str, str]:
    """File name -> recipe of every allocation in the report's table; replaying one makes the very bytes."""
    return {
        point.file: point.trial.recipe.to_yaml(made_with(model, dataset, search.target))
        for search in searches
        for point in search.points
    }
