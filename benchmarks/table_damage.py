"""What every 8-bit table of an int8 network costs, and the network without the worst of them (decision 8).

    python benchmarks/table_damage.py MODEL DATA [--images 128] [--seed 0] [--top 10]

First each table alone, as the task distance of the float network with only that value rounded; then the whole int8
network on the native engine with the k worst tables given up: distance on held-out calibration images, and drop on the
test images.
"""

from __future__ import annotations

import argparse
import math

from roadworthy.check.accuracy import predict
from roadworthy.check.audit import damages
from roadworthy.check.contract import settle_task
from roadworthy.check.judge import Judge
from roadworthy.check.machine import environment
from roadworthy.data.readers import read
from roadworthy.jobs.improve import AUDITED
from roadworthy.jobs.search import Search
from roadworthy.jobs.trial import Ui
from roadworthy.model.model import load
from roadworthy.model.units import units
from roadworthy.quantize.place import before_activation, is_depthwise
from roadworthy.recipe import CorrectBias, Fold, Quantize, Recipe
from roadworthy.run.targets import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--top", type=int, default=10)
    options = parser.parse_args()
    model, dataset = load(options.model), read(options.data)
    runner = TARGETS["ort"].runner(model.float_bytes())
    task, _ = settle_task(model, dataset, None, lambda: runner)
    model = model.with_task(task)
    judge = Judge.of(task, dataset.test, lambda: runner, 0.5)
    search = Search(
        model, task, dataset.calibration, judge, "native", "normal", options.seed, 0, Ui(), lambda _, __, work: work()
    )

    def built(exact: tuple[str, ...]):
        steps = (Fold(), Quantize("native", exact_activations=exact), CorrectBias())
        return search.build("int8", "int8", Recipe(steps, options.images, options.seed))

    plain, folded = built(()), Fold()(model, dataset.calibration)
    made_by = {str(before_activation(u).name): u for u in units(folded.ir) if u.activation is not None}
    tables = [p for p in made_by if p in plain.model.encodings]
    alone = damages(folded, task, search.probes[:AUDITED], plain.model.encodings, tables)
    order = sorted(tables, key=lambda p: -alone[p])
    print(f"{len(tables)} tables of {len(made_by)} activations; {options.images} images, seed {options.seed}\n")
    print("| layer | depthwise | distance with this table alone |\n|---|---|---|")
    for p in order[: options.top]:
        print(f"| {made_by[p].name} | {'yes' if is_depthwise(made_by[p]) else ''} | {alone[p]:.4f} |")
    rest = math.sqrt(sum(alone[p] ** 2 for p in order[options.top :]))
    print(f"| the other {len(order[options.top :])} together (root of the sum of squares) | | {rest:.4f} |\n")
    print("| tables given up | distance | drop |\n|---|---|---|")
    for count in dict.fromkeys((0, 1, 2, 4, 8, 16, len(order))):
        trial = built(tuple(made_by[p].name for p in order[:count]))
        found = predict(TARGETS["native"].runner(trial.deployed), task, dataset.test)
        print(f"| {count} | {search.distance(trial):.4f} | {judge(found).drop:+.2f} |", flush=True)
    machine = environment()
    print(f"\n{machine.get('cpu')}; {machine.get('versions')}")


if __name__ == "__main__":
    main()
