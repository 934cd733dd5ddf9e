"""Which requests a policy keeps, and why. Pure: the clock and randomness are arguments; what it remembers is bounded.

A judge looks at one request and its result, and gives the reason to keep it or None. Judges of one policy are asked in
the order in which they stand, but those that limit a rate last, so that they count only what the others would keep.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from agent.capture import scores
from agent.capture.drift import DriftMeter
from agent.capture.policy import (
    AllOf,
    AnyOf,
    Asked,
    Capture,
    Drift,
    Entropy,
    LeastConfidence,
    Margin,
    Matching,
    Random,
    Rate,
    Strategy,
)
from agent.capture.seen import Seen, scores_names

MAX_CLASSES: Final = 1000  # whose rates are told apart; more share one


class Judge(Protocol):
    def reason(self, seen: Seen, now: float, random: Callable[[], float]) -> str | None:
        """Why to keep the request, or None. `now`: seconds of a clock that never goes back."""


class _Random:
    def __init__(self, policy: Random) -> None:
        self._rate = policy.rate

    def reason(self, seen: Seen, now: float, random: Callable[[], float]) -> str | None:
        return "random" if random() < self._rate else None


class _Figure:
    """Keeps where a figure of the scores is strictly below, or above, a threshold.

    Source: ML Feedback connector, LEAST_CONFIDENCE, MARGIN (below) and ENTROPY (above).
    """

    def __init__(self, name: str, figure: Callable[[Any], float | None], threshold: float, *, above: bool) -> None:
        self._name, self._figure, self._threshold, self._above = name, figure, threshold, above

    def reason(self, seen: Seen, now: float, random: Callable[[], float]) -> str | None:
        found = seen.scores
        figure = self._figure(found.values) if found is not None else None
        if figure is None:
            return None
        kept = figure > self._threshold if self._above else figure < self._threshold
        return self._name if kept else None


class _Rate:
    """Keeps at most so many in any span of so many seconds, of all requests or of each class."""

    def __init__(self, policy: Rate) -> None:
        self._count, self._seconds, self._per_class = policy.count, policy.seconds, policy.per_class
        self._kept: OrderedDict[str | int, deque[float]] = OrderedDict()

    def reason(self, seen: Seen, now: float, random: Callable[[], float]) -> str | None:
        kept = self._times(seen)
        while kept and kept[0] <= now - self._seconds:
            kept.popleft()
        if len(kept) >= self._count:
            return None
        kept.append(now)
        return "per_class" if self._per_class else "rate"

    def _times(self, seen: Seen) -> deque[float]:
        found = seen.scores if self._per_class else None
        key = found.best if found is not None else ""
        if key not in self._kept and len(self._kept) >= MAX_CLASSES:
            key = ""
        return self._kept.setdefault(key, deque())


class _Drift:
    def __init__(self, policy: Drift) -> None:
        self._of, self._threshold = policy.of, policy.threshold
        self.meter = DriftMeter(policy.distance, policy.reference, policy.window)

    def reason(self, seen: Seen, now: float, random: Callable[[], float]) -> str | None:
        value = _measured(seen.at(self._of))
        if value is None:
            return None
        more = self.meter.take(value)
        return "drift" if more and (self.meter.distance or 0.0) > self._threshold else None


def _measured(value: Any) -> float | str | None:
    """A number, a text, or of a list of numbers their mean."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, (int, float, str)):
        return None if isinstance(value, float) and math.isnan(value) else value
    found = scores.find(value) if isinstance(value, (list, dict)) else None
    return sum(found.values) / len(found.values) if found is not None else None


class _Matching:
    def __init__(self, policy: Matching) -> None:
        self._rule = policy.rule
        self._reason = f"rule:{policy.name}" if policy.name else "rule"

    def reason(self, seen: Seen, now: float, random: Callable[[], float]) -> str | None:
        return self._reason if self._rule.holds(seen.look) else None


class _Never:
    def reason(self, seen: Seen, now: float, random: Callable[[], float]) -> str | None:
        return None


class _Combined:
    """Several judges: all are asked where one is enough; the reasons that there are, joined by ``+``."""

    def __init__(self, parts: tuple[Strategy, ...], *, every: bool) -> None:
        self.judges = [_judge(each) for each in sorted(parts, key=_limits)]
        self._every = every

    def reason(self, seen: Seen, now: float, random: Callable[[], float]) -> str | None:
        found: list[str] = []
        refused = False
        for judge in self.judges:
            if refused and not isinstance(judge, _Drift):  # which looks at every request, whatever becomes of it
                continue
            why = judge.reason(seen, now, random)
            if why is not None:
                found.append(why)
            elif self._every:
                refused = True
        return "+".join(dict.fromkeys(found)) if found and not refused else None


def _limits(policy: Strategy) -> bool:
    if isinstance(policy, (AllOf, AnyOf)):
        return any(_limits(each) for each in policy.parts)
    return isinstance(policy, Rate)


def _judge(policy: Strategy) -> Judge:
    made: Judge
    if isinstance(policy, Random):
        made = _Random(policy)
    elif isinstance(policy, LeastConfidence):
        made = _Figure("least_confidence", scores.confidence, policy.threshold, above=False)
    elif isinstance(policy, Margin):
        made = _Figure("margin", scores.margin, policy.threshold, above=False)
    elif isinstance(policy, Entropy):
        made = _Figure("entropy", scores.entropy, policy.threshold, above=True)
    elif isinstance(policy, Rate):
        made = _Rate(policy)
    elif isinstance(policy, Drift):
        made = _Drift(policy)
    elif isinstance(policy, Matching):
        made = _Matching(policy)
    elif isinstance(policy, Asked):
        made = _Never()
    else:
        made = _Combined(policy.parts, every=isinstance(policy, AllOf))
    return made


def needs_scores(policy: Strategy) -> bool:
    """Whether a policy cannot decide without the result's scores."""
    if isinstance(policy, (AllOf, AnyOf)):
        return any(needs_scores(each) for each in policy.parts)
    if isinstance(policy, Drift):
        return policy.of in scores_names()
    if isinstance(policy, Matching):
        return not policy.rule.names.isdisjoint(scores_names())
    return isinstance(policy, (LeastConfidence, Margin, Entropy)) or (isinstance(policy, Rate) and policy.per_class)


class Bench:
    """All that judges one function's requests.

    Args:
        policy: the function's.
    """

    def __init__(self, policy: Capture) -> None:
        self.policy = policy
        self.needs_scores = needs_scores(policy.strategy)
        self._judge = _judge(policy.strategy)
        self._measure = policy.value or _measure(policy.strategy)
        self._meters = list(self._find_meters())
        self._gathering = bool(self._meters)

    def reason(self, seen: Seen, now: float, random: Callable[[], float]) -> str | None:
        """Why to keep the request, or None."""
        return self._judge.reason(seen, now, random)

    def value(self, seen: Seen, random: Callable[[], float]) -> float:
        """What a kept sample is worth, in [0, 1): what is worth more is kept longer where room is short.

        By the strategy's own measure. Without one, or without scores, it is random: what is kept of such samples is a
        uniform choice of them.
        """
        found = seen.scores if self._measure != "random" else None
        worth = scores.worth(self._measure, found.values) if found is not None else None
        return random() if worth is None else worth

    def has_new_reference(self) -> bool:
        """Whether all references of its drift have become whole since it was asked last."""
        if not self._gathering or not all(meter.is_whole for meter in self._meters):
            return False
        self._gathering = False
        return True

    @property
    def meters(self) -> list[DriftMeter]:
        """The policy's drift meters, in its order."""
        return self._meters

    def _find_meters(self) -> Iterator[DriftMeter]:
        waiting: list[Judge] = [self._judge]
        while waiting:
            judge = waiting.pop(0)
            if isinstance(judge, _Drift):
                yield judge.meter
            elif isinstance(judge, _Combined):
                waiting = judge.judges + waiting


def _measure(policy: Strategy) -> str:
    """How a strategy tells what a sample is worth; of several strategies, the first that has a measure."""
    if isinstance(policy, (AllOf, AnyOf)):
        return next((found for each in policy.parts if (found := _measure(each)) != "random"), "random")
    names = {LeastConfidence: "least_confidence", Margin: "margin", Random: "random", Asked: "random"}
    return names.get(type(policy), "entropy")
