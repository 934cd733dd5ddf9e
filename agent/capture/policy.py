"""The values of a function's capture policy: what the deployment's document says once it has been read. Pure."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Final

from agent.values import dataclass

if TYPE_CHECKING:
    from agent.capture.rules import Rule

MEASURES: Final = ("entropy", "least_confidence", "margin", "random")


@dataclass(frozen=True, slots=True)
class Random:
    """Keep each request with probability `rate`, in [0, 1]."""

    rate: float


@dataclass(frozen=True, slots=True)
class LeastConfidence:
    """Keep where the greatest score is below `threshold`."""

    threshold: float


@dataclass(frozen=True, slots=True)
class Margin:
    """Keep where the greatest score is less than `threshold` above the next."""

    threshold: float


@dataclass(frozen=True, slots=True)
class Entropy:
    """Keep where the entropy of the normalised scores, in nats, is above `threshold`."""

    threshold: float


@dataclass(frozen=True, slots=True)
class Rate:
    """Keep at most `count` requests in any `seconds`; with `per_class` so many of each class."""

    count: int
    seconds: float
    per_class: bool = False


@dataclass(frozen=True, slots=True)
class Drift:
    """Keep what has become more frequent than it was, once the distance from a reference is above `threshold`.

    Attributes:
        of: what is looked at: ``confidence``, ``margin``, ``entropy``, ``best``, or a path ``event.a.b``, ``output.a``.
        distance: ``psi`` (population stability index) or ``ks`` (greatest difference of the distributions).
        reference: how many requests, the first of a model's version, are what it is compared with.
        window: how many requests, the latest, are compared.
    """

    of: str = "confidence"
    distance: str = "psi"
    threshold: float = 0.25
    reference: int = 1000
    window: int = 200


@dataclass(frozen=True, slots=True)
class Matching:
    """Keep where a rule holds; `name` is said in the reason."""

    rule: Rule
    name: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """Keep nothing but what the function itself asks for."""


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Keep what one of `parts` keeps."""

    parts: tuple[Strategy, ...]


@dataclass(frozen=True, slots=True)
class AllOf:
    """Keep what all of `parts` keep."""

    parts: tuple[Strategy, ...]


Strategy = Random | LeastConfidence | Margin | Entropy | Rate | Drift | Matching | Asked | AnyOf | AllOf


@dataclass(frozen=True, slots=True)
class Capture:
    """A function's capture policy.

    Attributes:
        scores: where the scores are in the result, as a path; empty: they are looked for.
        value: one of `MEASURES`: how a sample's worth is told; None: as the strategy has it.
    """

    strategy: Strategy
    scores: tuple[str, ...] = field(default=())
    value: str | None = None
