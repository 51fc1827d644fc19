"""What the slope that stands for that of round does to training: a small network of 3 or 4-bit weights imitates itself.

    python benchmarks/surrogate_slopes.py [--seeds 3]

A network of three layers with random weights, its weights rounded, is trained towards its own float outputs on random
inputs. Prints the squared distance on other inputs as a share of the outputs' variance, mean and spread over seeds:
straight through, DSQ, the Fourier series as it is (`series`) and as the mean of its partial sums (`mean`).
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from roadworthy.run.torch.surrogates import GRADIENTS, Gradient, dsq, fourier, round_to

ROWS: dict[str, Gradient] = {
    "ste": GRADIENTS["ste"],
    **{f"dsq {a}": dsq(a) for a in (0.05, 0.2, 0.4)},
    **{f"{how} {n}": fourier(n, fejer=how == "mean") for n in (1, 2, 3, 5) for how in ("series", "mean")},
}


def network(x: Tensor, weights: list[Tensor]) -> Tensor:
    for w in weights[:-1]:
        x = torch.nn.functional.silu(x @ w.T)
    return x @ weights[-1].T


def distance(gradient: Gradient, seed: int, bits: int, lr: float, steps: int) -> tuple[float, float]:
    """Before and after training."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(64, 32), (64, 64), (8, 64)]
    weights = [torch.randn(s, generator=g) / s[1] ** 0.5 for s in shapes]
    x, other = torch.randn(4096, 32, generator=g), torch.randn(2048, 32, generator=g)
    qmax = 2 ** (bits - 1) - 1
    scales = [0.8 * w.abs().amax(1, keepdim=True) / qmax for w in weights]
    trained = [w.clone().requires_grad_() for w in weights]
    optimizer = torch.optim.Adam(trained, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    aim, goal = network(x, weights), network(other, weights)

    def rounded() -> list[Tensor]:
        return [round_to(w / s, 0.0, -qmax, qmax, gradient) * s for w, s in zip(trained, scales)]

    def found() -> float:
        with torch.no_grad():
            return float((network(other, rounded()) - goal).square().mean() / goal.var())

    before = found()
    for _ in range(steps):
        batch = torch.randint(0, len(x), (128,), generator=g)
        optimizer.zero_grad()
        (network(x[batch], rounded()) - aim[batch]).square().mean().backward()
        optimizer.step()
        schedule.step()
    return before, found()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for bits in (3, 4):
        for lr in (5e-4, 2e-3):
            print(f"{bits} bits, learning rate {lr}")
            for name, gradient in ROWS.items():
                rows = np.array([distance(gradient, s, bits, lr, given.steps) for s in range(given.seeds)])
                (before, after), spread = rows.mean(0), rows[:, 1].std()
                print(f"    {name:10s} {before:.4f} -> {after:.4f} +- {spread:.4f}", flush=True)


if __name__ == "__main__":
    main()
