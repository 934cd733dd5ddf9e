"""What became of the watches' requests: answered, asked again, lost, doubled, wrong. Pure; the caller brings the clock.

A request is known by its id, ``WATCH.NUMBER``. It is answered once its first answer came, lost when none came within
`LOST_S` although it was asked again after `AGAIN_S`, after twice that, and so on. An answer is wrong when it is an
error, names a model version that was never deployed, or differs from what that version gives when it is run by hand.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.values import dataclass
from functions.activity import ACTIVITIES

AGAIN_S = 5.0
LOST_S = 60.0
TOLERANCE = 2e-4  # float32 sums in another order, and scores rounded to six digits
LATENCIES = 2000


@dataclass(slots=True)
class Request:
    """One question of a watch."""

    number: int
    window: int
    first_s: float
    asked_s: float
    times: int = 1
    served_by: str = ""


@dataclass(slots=True)
class Version:
    """What a model version should answer, and what came.

    Attributes:
        scores: float32[windows, 4], the model run by hand on each window.
        right: answers whose activity is the recording's label.
    """

    name: str
    scores: NDArray[np.float32]
    answers: int = 0
    right: int = 0

    @property
    def accuracy(self) -> float:
        """Of the answers so far, in [0, 1]; 0 before the first."""
        return self.right / self.answers if self.answers else 0.0


@dataclass(frozen=True, slots=True)
class Counts:
    """The tally at one moment. `latencies_ms` are the last `LATENCIES` answers', sorted."""

    sent: int
    answered: int
    waiting: int
    again: int
    lost: int
    doubled: int
    wrong: int
    latencies_ms: tuple[float, ...] = field(repr=False)

    def latency_ms(self, share: float) -> float:
        """The latency that `share` of the answers did not exceed; 0 before the first."""
        return (
            self.latencies_ms[min(len(self.latencies_ms) - 1, int(share * len(self.latencies_ms)))]
            if self.answered
            else 0.0
        )


class Tally:
    """Thread-safe: watches send and receive on threads of their own."""

    def __init__(self, labels: NDArray[np.int64]) -> None:
        self._labels = labels
        self._lock = threading.Lock()
        self._open: dict[str, Request] = {}
        self._closed: dict[str, Request] = {}
        self._lost: dict[str, Request] = {}
        self._latencies: deque[float] = deque(maxlen=LATENCIES)
        self._versions: dict[str, Version] = {}
        self._sent = self._again = self._doubled = 0
        self.wrongs: list[str] = []
        self.last_activity: dict[str, str] = {}

    def know(self, version: str, name: str, scores: NDArray[np.float32]) -> Version:
        """From now on answers of `version` (``sha256:..``) are held against `scores`."""
        with self._lock:
            return self._versions.setdefault(version, Version(name, scores))

    @property
    def waiting(self) -> int:
        """Requests without an answer that are not given up."""
        return len(self._open)

    @property
    def versions(self) -> Mapping[str, Version]:
        with self._lock:
            return dict(self._versions)

    def sent(self, id: str, number: int, window: int, now: float) -> None:
        """A new request left, the `number`-th of all."""
        with self._lock:
            self._open[id] = Request(number, window, now, now)
            self._sent = number + 1

    def overdue(self, now: float) -> list[tuple[str, int]]:
        """(id, window) of the requests to ask again now, each counted as asked; gives up what is too old."""
        again = []
        with self._lock:
            for id, request in list(self._open.items()):
                if now - request.first_s > LOST_S:
                    self._lost[id] = self._open.pop(id)
                elif now - request.asked_s > AGAIN_S * 2 ** (request.times - 1):
                    request.asked_s, request.times = now, request.times + 1
                    self._again += 1
                    again.append((id, request.window))
        return again

    def answered(self, payload: bytes | bytearray, now: float) -> None:
        """An answer came; of what kind, is found out here."""
        try:
            body = json.loads(payload)
            id = str(body["meta"]["request"])
        except (ValueError, TypeError, KeyError):
            with self._lock:
                self.wrongs.append(f"an answer without a request's id: {payload[:200]!r}")
            return
        with self._lock:
            request = self._open.pop(id, None) or self._lost.pop(id, None)
            if request is None:
                self._repeated(id)
                return
            self._closed[id] = request
            self._latencies.append((now - request.first_s) * 1000)
            problem = self._judge(id, request, body)
            if problem:
                self.wrongs.append(f"{id}: {problem}")

    def counts(self) -> Counts:
        with self._lock:
            return Counts(
                sent=self._sent,
                answered=len(self._closed),
                waiting=len(self._open),
                again=self._again,
                lost=len(self._lost),
                doubled=self._doubled,
                wrong=len(self.wrongs),
                latencies_ms=tuple(sorted(self._latencies)),
            )

    def settled(self, before: int) -> bool:
        """Whether each request before the `before`-th is answered or lost."""
        with self._lock:
            return all(request.number >= before for request in self._open.values())

    def answered_ids(self, first: int, before: int) -> set[str]:
        """The answered requests from the `first`-th to before the `before`-th."""
        with self._lock:
            return {id for id, request in self._closed.items() if first <= request.number < before}

    def served_by(self, first: int) -> set[str]:
        """The names of the versions that answered the requests from the `first`-th on."""
        with self._lock:
            return {request.served_by for request in self._closed.values() if request.number >= first}

    def asked_once(self, id: str) -> bool:
        with self._lock:
            request = self._closed.get(id) or self._open.get(id) or self._lost.get(id)
            return request is not None and request.times == 1

    def _repeated(self, id: str) -> None:
        """A second answer is a fault only where the watch asked once: an id asked again may be answered again."""
        known = self._closed.get(id)
        if known is None:
            self.wrongs.append(f"an answer to {id!r}, which nobody asked")
        elif known.times == 1:
            self._doubled += 1

    def _judge(self, id: str, request: Request, body: dict[str, Any]) -> str | None:
        if "error" in body:
            return f"an error: {body['error']}"
        version = self._versions.get(body["meta"].get("version", ""))
        if version is None:
            return f"of a version that was never deployed: {body['meta'].get('version')}"
        activity, scores = body.get("activity"), body.get("scores", {})
        given = np.array([scores.get(name, np.nan) for name in ACTIVITIES])
        wanted = version.scores[request.window]
        request.served_by = version.name
        version.answers += 1
        version.right += activity == ACTIVITIES[self._labels[request.window]]
        self.last_activity[id.rpartition(".")[0]] = str(activity)
        if activity != ACTIVITIES[int(wanted.argmax())] or not np.allclose(given, wanted, rtol=0, atol=TOLERANCE):
            return f"{scores} where {version.name} by hand gives {wanted.round(6).tolist()}"
        return None
