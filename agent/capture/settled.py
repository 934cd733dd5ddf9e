"""A request that a function has answered, and what became of all such. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any

from agent.capture.samples import Payload
from agent.inference.requests import Kept, Origin
from agent.values import dataclass

Hold = Callable[[], Callable[[], None]]


@dataclass(frozen=True, slots=True)
class Settled:
    """A request that a function has answered.

    Attributes:
        id: the sample's id, if it becomes one.
        given: the request's payload.
        made: the first result's.
        asked: the samples that the function itself asks for.
    """

    id: str
    origin: Origin
    topic: str
    given: Payload
    made: Payload | None
    asked: Sequence[Kept] = ()


@dataclass(slots=True)
class Tally:
    """What became of one function's requests: how many were seen, kept by reason, dropped by why, without scores."""

    seen: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    without_scores: int = 0

    def told(self) -> dict[str, Any]:
        return {
            "seen": self.seen,
            "kept": dict(self.kept),
            "bytes": self.bytes,
            "dropped": dict(self.dropped),
            "without_scores": self.without_scores,
        }
