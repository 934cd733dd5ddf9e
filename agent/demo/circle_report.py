"""`scripts/circle`: the circle for several seeds, and what came of it as a table with its interval."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from agent.demo import digits
from agent.demo.circle import POLICIES, Factory, Turn
from agent.errors import AgentError

LABELLED, HOLDOUT = 50, 500
# Student's t for a two-sided 95 % interval, by degrees of freedom.
T: Final = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 14: 2.145,
            19: 2.093, 29: 2.045}  # fmt: skip


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the half width of its 95 % interval; of degrees that are not listed, the next fewer are taken."""
    if len(values) < 2:
        return values[0], math.nan
    degrees = max(each for each in T if each <= len(values) - 1)
    return statistics.mean(values), T[degrees] * statistics.stdev(values) / math.sqrt(len(values))


def turns(seeds: Iterable[int], budget: int) -> Iterable[Turn]:
    """Each seed with each policy, through one agent."""
    data = digits.read(digits.find_wheel())
    factory = Factory(budget)
    try:
        factory.start()
        for seed in seeds:
            split = digits.split(data, seed=seed, labelled=LABELLED, holdout=HOLDOUT)
            for policy in POLICIES:
                yield factory.turn(split, seed, policy)
    finally:
        factory.stop()


def summary(found: Sequence[Turn]) -> str:
    """What came of all turns, as lines of a page."""
    by = {policy: {turn.seed: turn for turn in found if turn.policy == policy} for policy in POLICIES}
    seeds = sorted(set.intersection(*(set(each) for each in by.values())))
    rows = [("before (50 labelled digits)", [by["random"][seed].before for seed in seeds])]
    rows += [(f"after, samples by {policy}", [by[policy][seed].after for seed in seeds]) for policy in POLICIES]
    rows.append(("entropy less random", [by["entropy"][s].after - by["random"][s].after for s in seeds]))
    lines = ["| accuracy on the holdout | mean | 95 % interval |", "|---|---|---|"]
    for name, values in rows:
        mean, half = interval(values)
        span = "" if math.isnan(half) else f"{100 * (mean - half):.1f} to {100 * (mean + half):.1f}"
        lines.append(f"| {name} | {100 * mean:.1f} % | {span} |")
    return "\n".join(lines)


def main() -> int:
    """Runs the circle as the command line asks."""
    parser = argparse.ArgumentParser(prog="scripts/circle", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budget", type=int, default=100, help="samples that the core may keep while it is offline")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each turn there as well")
    options = parser.parse_args()
    found: list[Turn] = []
    began = time.monotonic()
    try:
        for turn in turns(range(options.seeds), options.budget):
            found.append(turn)
            print(f"{time.monotonic() - began:6.1f} s  seed {turn.seed:2d}  {turn.policy:8s} {turn.samples} samples: "
                  f"{100 * turn.before:.1f} % -> {100 * turn.after:.1f} %", flush=True)  # fmt: skip
    except AgentError as error:
        print(f"circle: {error}", file=sys.stderr)
        return 1
    print(f"\n{options.seeds} seeds, {options.budget} samples of {digits_left()} kept\n\n{summary(found)}")
    if options.json:
        values = [{key: getattr(turn, key) for key in Turn.__slots__} for turn in found]
        options.json.write_text(json.dumps(values, indent=1) + "\n")
    return 0


def digits_left() -> int:
    """How many digits the device is shown."""
    return len(digits.read(digits.find_wheel())) - LABELLED - HOLDOUT


if __name__ == "__main__":
    sys.exit(main())
