"""One request and its result as judges look at it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from agent.capture import scores
from agent.capture.payloads import read

_UNREAD: Final = object()
Payload = tuple[str, bytes]  # content type, bytes


class Seen:
    """One request and its result as judges look at it: read when it is first asked for, and once.

    Args:
        given, made: the request's and the result's payload; made: None where there is no result.
        path: where the scores are in the result; empty: they are looked for.
    """

    __slots__ = ("_event", "_given", "_made", "_output", "_path", "_scores", "topic")

    def __init__(self, topic: str, given: Payload, made: Payload | None, path: tuple[str, ...] = ()) -> None:
        self.topic = topic
        self._given, self._made, self._path = given, made, path
        self._event: Any = _UNREAD
        self._output: Any = _UNREAD
        self._scores: Any = _UNREAD

    @property
    def event(self) -> Any:
        """The request, decoded; None where it cannot be."""
        if self._event is _UNREAD:
            self._event = read(*self._given)
        return self._event

    @property
    def output(self) -> Any:
        """The result, decoded; None where there is none or it cannot be."""
        if self._output is _UNREAD:
            self._output = read(*self._made) if self._made else None
        return self._output

    @property
    def scores(self) -> scores.Scores | None:
        """The result's scores; None where it has none that can be told."""
        if self._scores is _UNREAD:
            self._scores = scores.find(self.output, self._path)
        found: scores.Scores | None = self._scores
        return found

    @property
    def lacks_scores(self) -> bool:
        """Whether the scores were asked for and are not there."""
        return self._scores is None

    def look(self, name: str) -> Any:
        """What a name of the rules stands for; None where it is not there."""
        if name in ("event", "output", "topic"):
            return getattr(self, name)
        found = self.scores
        if found is None:
            return None
        return found.best if name == "best" else _FIGURES[name](found.values)

    def at(self, path: str) -> Any:
        """What is at ``event.a.b``, ``output.a`` or a name of the rules."""
        first, *rest = path.split(".")
        return scores.walk(self.look(first), rest) if rest else self.look(first)


_FIGURES: Final[dict[str, Callable[[Any], float | None]]] = {
    "confidence": scores.confidence,
    "margin": scores.margin,
    "entropy": scores.entropy,
}


def scores_names() -> tuple[str, ...]:
    """The names of rules that the scores stand behind."""
    return ("best", *_FIGURES)
