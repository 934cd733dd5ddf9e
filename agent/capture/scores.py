"""Where the scores are in a result, and what they say of how sure the model was. Pure.

No numpy: the agent has none, and a dozen scores are read in some microseconds without.
"""

from __future__ import annotations

import heapq
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent.values import dataclass

MAX_SCORES: Final = 10_000
NAMED: Final = ("scores", "probabilities")  # taken where a result has several lists of numbers
# struct's letters by numpy's names and the Open Inference Protocol's.
FORMATS: Final = {"float16": "e", "float32": "f", "float64": "d", "FP16": "e", "FP32": "f", "FP64": "d"}
NUMBERS: Final = {int, float}
SIZES: Final = {"e": 2, "f": 4, "d": 8}


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one prediction.

    Attributes:
        values: finite numbers, one at least.
        names: of the classes, where the result has them.
    """

    values: Sequence[float]
    names: Sequence[str] | None = None

    @property
    def best(self) -> str | int:
        """The likeliest class: its name, or its place from 0."""
        at = self.values.index(max(self.values))
        return self.names[at] if self.names else at


def confidence(scores: Sequence[float]) -> float:
    """The greatest score.

    Source: ML Feedback connector, LEAST_CONFIDENCE.
    """
    return max(scores)


def margin(scores: Sequence[float]) -> float:
    """The gap between the two greatest scores; 1.0 for a single one.

    Source: ML Feedback connector, MARGIN (which fails on a single score).
    """
    if len(scores) < 2:
        return 1.0
    first, second = heapq.nlargest(2, scores)
    return first - second


def entropy(scores: Sequence[float]) -> float | None:
    """The entropy of the scores in nats, once they are normalised to sum 1: 1.0397 for [.5, .25, .25].

    None where there is none: a score is negative, or all are 0.

    Source: ML Feedback connector, ENTROPY.
    """
    total = sum(scores)
    if total <= 0 or min(scores) < 0:
        return None
    # -sum(p log p) with p = s / total, without the division of each
    return math.log(total) - sum(s * math.log(s) for s in scores if s) / total


def worth(measure: str, scores: Sequence[float]) -> float | None:
    """How much a prediction's input is expected to teach, in [0, 1]; None where the scores do not say.

    Args:
        measure: ``entropy`` (as a share of the greatest possible), ``least_confidence`` or ``margin`` (1 less the
            figure, of the normalised scores).
    """
    nats, total = entropy(scores), sum(scores)
    if nats is None:
        return None
    if len(scores) < 2:
        return 0.0
    if measure == "entropy":
        found = nats / math.log(len(scores))
    else:
        found = 1 - (confidence(scores) if measure == "least_confidence" else margin(scores)) / total
    return min(max(found, 0.0), 1.0)


# -- where they are ---------------------------------------------------------------------------------------------------


def find(result: Any, path: Sequence[str] = ()) -> Scores | None:
    """The scores in a result, or None where there are none.

    With a path, what is there. Without one: the result itself where it is a list of numbers, a tensor or an object of
    class to score in [0, 1]; else its one member that is such a thing (of several, the one named ``scores`` or
    ``probabilities``); else the one output of the Open Inference Protocol that is of floats. ``meta`` is passed over.
    """
    if path:
        return _scores(walk(result, path))
    if not isinstance(result, dict):
        return _scores(result)
    members = {key: value for key, value in result.items() if key != "meta"}
    if "data" in members:
        return _scores(members)
    if isinstance(members.get("outputs"), list):
        return _only(_tensors(members["outputs"]))
    return _only(_candidates(members)) or _by_class(members)


def walk(value: Any, path: Sequence[str]) -> Any:
    """What is at a path: a key of an object, a place in a list from 0, or the element with that ``name``; else None."""
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        elif isinstance(value, list):
            value = next((each for each in value if isinstance(each, dict) and each.get("name") == step), None)
        else:
            return None
    return value


def _only(found: Mapping[str, Scores]) -> Scores | None:
    if len(found) > 1:
        found = {key: each for key, each in found.items() if key in NAMED}
    return next(iter(found.values())) if len(found) == 1 else None


def _tensors(outputs: list[Any]) -> dict[str, Scores]:
    floats = [each for each in outputs if isinstance(each, dict) and each.get("datatype") in FORMATS]
    found = {str(each.get("name")): _scores(each) for each in floats}
    return {name: each for name, each in found.items() if each is not None and len(each.values) > 1}


def _candidates(members: Mapping[str, Any]) -> dict[str, Scores]:
    found = {}
    for key, value in members.items():
        scores = _scores(value) if isinstance(value, (list, dict)) else None
        if scores is not None and len(scores.values) > 1:
            found[key] = scores
    return found


def _scores(value: Any) -> Scores | None:
    """A list of numbers (alone in a list, too), a tensor, or an object of class to score."""
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if isinstance(value, dict):
        return _tensor(value) if "data" in value else _by_class(value)
    if not isinstance(value, list) or not 0 < len(value) <= MAX_SCORES:
        return None
    return Scores(value) if _are_numbers(value) else None


def _by_class(value: Mapping[str, Any]) -> Scores | None:
    numbers = list(value.values())
    if not 1 < len(numbers) <= MAX_SCORES or not _are_numbers(numbers) or min(numbers) < 0 or max(numbers) > 1:
        return None
    return Scores(numbers, [str(key) for key in value])


def _tensor(value: Mapping[str, Any]) -> Scores | None:
    """``{"shape", "dtype" or "datatype", "data"}``; more rows than one are more predictions than one, and none here."""
    data, shape = value.get("data"), value.get("shape")
    if isinstance(shape, list) and any(size != 1 for size in shape[:-1]):
        return None
    if isinstance(data, list):
        return _scores(data)
    letter = FORMATS.get(str(value.get("dtype") or value.get("datatype")))
    if not isinstance(data, bytes) or letter is None or not 0 < len(data) <= MAX_SCORES * SIZES[letter]:
        return None
    count, rest = divmod(len(data), SIZES[letter])
    numbers = [] if rest else list(struct.unpack(f"<{count}{letter}", data))
    return Scores(numbers) if numbers and _are_numbers(numbers) else None


def _are_numbers(values: list[Any]) -> bool:
    """Whether all are numbers, and finite ones."""
    try:
        return set(map(type, values)) <= NUMBERS and math.isfinite(sum(values))
    except OverflowError:
        return False
