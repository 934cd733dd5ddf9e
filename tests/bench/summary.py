"""From samples to figures: medians with their intervals, and ratios within a round. Pure.

The interval is distribution-free: the order statistics between which the median of what was sampled lies with a
probability of 95 %.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A median, the interval that holds the true one with 95 %, and how many values it was taken of."""

    median: float
    low: float
    high: float
    count: int


def figure(values: Iterable[float]) -> Figure | None:
    """The median of `values` with its interval; None where there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    outside = _outside(len(ordered))
    return Figure(statistics.median(ordered), ordered[outside], ordered[-1 - outside], len(ordered))


def _outside(count: int) -> int:
    """How many values at each end lie outside it: with one more, P(Binomial(count, 1/2) < that) is 2.5 % at most."""
    below, rank = 0.0, 0
    while rank <= count // 2:
        below += math.comb(count, rank) / 2**count
        if below > 0.025:
            break
        rank += 1
    return max(rank - 1, 0)


def values(samples: Iterable[dict[str, Any]], job: str, contender: str, of: str) -> dict[int, float]:
    """One figure of a contender by round: ``rate``, ``p50``, ``p99``, ``p999`` (us), ``cpu`` (us, all its processes),
    or ``cpu:ROLE``."""
    found = {}
    for sample in samples:
        if sample["job"] == job and sample["contender"] == contender:
            value = _value(sample, of)
            if value is not None:
                found[sample["round"]] = value
    return found


def _value(sample: dict[str, Any], of: str) -> float | None:
    if of == "rate":
        return sample["rate"] or None
    if of == "cpu":
        return sum(used for role, used in sample["cpu_us"].items() if role != "broker") or None
    if of.startswith("cpu:"):
        return sample["cpu_us"].get(of[4:])
    return sample["latency_us"].get(of)


def ratio(samples: Sequence[dict[str, Any]], job: str, contender: str, base: str, of: str) -> Figure | None:
    """A contender's figure over another's in the same round."""
    ours, theirs = values(samples, job, contender, of), values(samples, job, base, of)
    return figure(ours[each] / theirs[each] for each in ours.keys() & theirs.keys())
