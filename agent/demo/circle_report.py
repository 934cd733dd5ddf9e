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

HOLDOUT = 500
# Student's t for a two-sided 95 % interval, by degrees of freedom.
T: Final = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 14: 2.145,
            19: 2.093, 29: 2.045}  # fmt: skip


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the half width of its 95 % interval; of degrees that are not listed, the next fewer are taken."""
    if len(values) < 2:
        return values[0], math.nan
    degrees = max(each for each in T if each <= len(values) - 1)
    return statistics.mean(values), T[degrees] * statistics.stdev(values) / math.sqrt(len(values))


def turns(seeds: Iterable[int], policies: Sequence[str], labelled: int, budget: int) -> Iterable[Turn]:
    """Each seed with each policy, through one agent."""
    data = digits.read(digits.find_wheel())
    factory = Factory(budget)
    try:
        factory.start()
        for seed in seeds:
            split = digits.split(data, seed=seed, labelled=labelled, holdout=HOLDOUT)
            for policy in policies:
                yield factory.turn(split, seed, policy)
    finally:
        factory.stop()


def summary(found: Sequence[Turn]) -> str:
    """What came of all turns, as lines of a page."""
    policies = list(dict.fromkeys(turn.policy for turn in found))
    by = {policy: {turn.seed: turn for turn in found if turn.policy == policy} for policy in policies}
    seeds = sorted(set.intersection(*(set(each) for each in by.values())))
    rows = [("before", [by[policies[0]][seed].before for seed in seeds])]
    rows += [(f"after, samples by {policy}", [by[policy][seed].after for seed in seeds]) for policy in policies]
    for policy in policies if "random" in policies else ():
        if policy != "random":
            rows.append((f"{policy} less random", [by[policy][s].after - by["random"][s].after for s in seeds]))
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
    parser.add_argument("--labelled", type=int, default=200, help="digits that the first model learns from")
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each turn there as well")
    options = parser.parse_args()
    found: list[Turn] = []
    began = time.monotonic()
    try:
        for turn in turns(range(options.seeds), options.policies, options.labelled, options.budget):
            found.append(turn)
            print(f"{time.monotonic() - began:6.1f} s  seed {turn.seed:2d}  {turn.policy:8s} {turn.samples} samples: "
                  f"{100 * turn.before:.1f} % -> {100 * turn.after:.1f} %", flush=True)  # fmt: skip
    except AgentError as error:
        print(f"circle: {error}", file=sys.stderr)
        return 1
    stream = len(digits.read(digits.find_wheel())) - options.labelled - HOLDOUT
    print(f"\n{options.seeds} seeds, {options.labelled} labelled digits, {options.budget} samples of {stream} kept"
          f"\n\n{summary(found)}")  # fmt: skip
    if options.json:
        values = [{key: getattr(turn, key) for key in Turn.__slots__} for turn in found]
        options.json.write_text(json.dumps(values, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
