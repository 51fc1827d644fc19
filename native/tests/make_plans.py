"""Writes small plans for the C++ test programs: `python native/tests/make_plans.py folder [count]`.

Random networks of the Python tests, lowered: between them they hold nearly every operation.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]


def main() -> None:
    from random_graphs import random_int8_model
    from roadworthy.model.model import Model
    from roadworthy.run.native.lower import lower

    folder = Path(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 24
    folder.mkdir(parents=True, exist_ok=True)
    seen = set()
    for seed in range(count):
        model = random_int8_model(seed)
        # Every third network computes in floats, so that those kernels are reached too.
        plan = lower(Model(ir=model.ir) if seed % 3 == 2 else model)
        (folder / f"random{seed:03}.rwp").write_bytes(plan.to_bytes())
        seen.update(op.code.name for op in plan.ops)
    print(f"{count} plans with {', '.join(sorted(seen))}")


if __name__ == "__main__":
    main()
