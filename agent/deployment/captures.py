"""Reads a function's ``Marram.Capture``: which of its requests become training data. Pure; notes every problem.

The names of Greengrass V1's ML Feedback connector (RANDOM_SAMPLING, LEAST_CONFIDENCE, MARGIN, ENTROPY) are taken, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from agent.capture.drift import DISTANCES
from agent.capture.policy import (
    MEASURES,
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
from agent.capture.seen import scores_names
from agent.deployment.fields import Fields, nearest, shown

MAX_PARTS: Final = 10
MAX_DEPTH: Final = 3
MAX_NATS: Final = 20.0  # the entropy of some 500 million classes
MAX_COUNT: Final = 10_000
MAX_SECONDS: Final = 31 * 86_400.0
MAX_VALUES: Final = 100_000
PATH: Final = r"[^.\s]{1,128}(\.[^.\s]{1,128}){0,15}"
PATH_WORDS: Final = "a path of keys and places, such as result.scores or outputs.0.data"
V1_NAMES: Final = {"RANDOM_SAMPLING": "random"}
BOUNDS: Final = {"psi": 0.25, "ks": 0.2}


def read_capture(function: Fields) -> Capture | None:
    """The policy of the function whose key ``Marram`` is `function`; None where it has none, or a wrong one."""
    fields = function.fields("Capture")
    if fields is None:
        return None
    scores = fields.text("Scores", pattern=PATH, what=PATH_WORDS)
    value = fields.choice("Value", MEASURES)
    strategy = _strategy(fields, 1)
    return Capture(strategy, tuple(scores.split(".")) if scores else (), value) if strategy is not None else None


def _strategy(fields: Fields, depth: int) -> Strategy | None:
    combined = [key for key in ("Any", "All") if fields.has(key)]
    if combined:
        return _combined(fields, combined, depth)
    name = fields.text("Strategy", required=True)
    made: Strategy | None = None
    if name is not None:
        read = _READERS.get(V1_NAMES.get(name, name.lower()))
        if read is not None:
            made = read(fields)
        else:
            known = [*_READERS]
            fields.bad("Strategy", f"must be one of {', '.join(known)}, not {shown(name)}{nearest(name, known)}")
            return None  # what else it may hold depends on it
    fields.done()
    return made


def _combined(fields: Fields, keys: list[str], depth: int) -> Strategy | None:
    if len(keys) > 1 or fields.has("Strategy"):
        fields.bad("", "has more than one of Strategy, Any and All; put one into the other")
        return None
    if depth >= MAX_DEPTH:
        fields.bad(keys[0], f"is the {MAX_DEPTH + 1}. level of Any and All; at most {MAX_DEPTH} are allowed")
        return None
    parts = [_strategy(Fields(each, at, fields.problems), depth + 1) for each, at in fields.items(keys[0], MAX_PARTS)]
    fields.done()
    if not parts:
        fields.bad(keys[0], "is empty: name the strategies, each an object with Strategy")
    found = tuple(each for each in parts if each is not None)
    return (AnyOf(found) if keys[0] == "Any" else AllOf(found)) if len(found) == len(parts) > 0 else None


def _number(fields: Fields, key: str, what: str, most: float) -> float:
    if not fields.has(key):
        fields.bad(key, f"is missing: {what}")
    return float(fields.number(key, 0.0, 0.0, most) or 0.0)


def _random(fields: Fields) -> Strategy:
    return Random(_number(fields, "Rate", "the share of requests to keep, 0 to 1", 1.0))


def _least_confidence(fields: Fields) -> Strategy:
    return LeastConfidence(_number(fields, "Threshold", "kept is where the greatest score is below it, 0 to 1", 1.0))


def _margin(fields: Fields) -> Strategy:
    text = "kept is where the two greatest scores differ by less, 0 to 1"
    return Margin(_number(fields, "Threshold", text, 1.0))


def _entropy(fields: Fields) -> Strategy:
    text = "kept is where the scores' entropy in nats is above it (1.1 is the most of 3 classes, 2.3 of 10)"
    return Entropy(_number(fields, "Threshold", text, MAX_NATS))


def _rate(fields: Fields) -> Rate:
    if not fields.has("Seconds"):
        fields.bad("Seconds", "is missing: at most Count (1) requests are kept in so many seconds")
    seconds = fields.number("Seconds", 1.0, 0.001, MAX_SECONDS)
    return Rate(fields.integer("Count", 1, 1, MAX_COUNT) or 1, float(seconds or 1.0))


def _per_class(fields: Fields) -> Strategy:
    each = _rate(fields)
    return Rate(each.count, each.seconds, per_class=True)


def _drift(fields: Fields) -> Strategy:
    of = fields.text("Of") or "confidence"
    first, _, rest = of.partition(".")
    if of not in scores_names() and not (first in ("event", "output") and re.fullmatch(PATH, rest)):
        names = [*scores_names(), "event.PATH", "output.PATH"]
        fields.bad("Of", f"must be one of {', '.join(names)}, not {shown(of)}{nearest(of, names)}")
    distance = fields.choice("Distance", tuple(DISTANCES), "psi") or "psi"
    threshold = fields.number("Threshold", BOUNDS[distance], 0.0, 100.0)
    reference = fields.integer("Reference", 1000, 100, MAX_VALUES)
    window = fields.integer("Window", 200, 20, MAX_VALUES)
    return Drift(of, distance, float(threshold or 0.0), reference or 1000, window or 200)


def _rule(fields: Fields) -> Strategy | None:
    name = fields.text("Name", pattern=r"[A-Za-z0-9_-]{1,64}", what="1 to 64 of A-Z a-z 0-9 _ -")
    text = fields.take("When")
    if not isinstance(text, str) or not text.strip():
        fields.bad("When", 'is missing: a rule as a text, such as "event.temperature > 80 and confidence < 0.9"')
        return None
    from agent.capture import rules  # Python's own parser, 0.4 MB: only where there is a rule

    try:
        return Matching(rules.parse(text), name or "")
    except rules.RuleError as error:
        fields.bad("When", f"{error}: {shown(text)}")
        return None


def _asked(fields: Fields) -> Strategy:
    return Asked()


_READERS: Final[dict[str, Callable[[Fields], Strategy | None]]] = {
    "random": _random,
    "least_confidence": _least_confidence,
    "margin": _margin,
    "entropy": _entropy,
    "rate": _rate,
    "per_class": _per_class,
    "drift": _drift,
    "rule": _rule,
    "asked": _asked,
}
