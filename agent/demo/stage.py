"""What the demonstration's steps are made of: waiting, deploying, watching what arrives, and noting what held."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.demo.documents import Package
from agent.demo.site import Site
from agent.demo.tally import LOST_S, Tally
from agent.demo.view import Check, Figures, View
from agent.demo.watches import Fleet

DEPLOY_S = 30.0
ONLINE_S = 30.0
CATCH_UP_S = 30.0  # the agent waits longer from try to try the longer the cloud is away
TICK_S = 0.1


class Stage:
    """A started site with its watches. Every method blocks; all but `figures` on one thread.

    Attributes:
        checks: what was promised so far, and whether it held.
        view: set before anything is done.
    """

    view: View

    def __init__(self, site: Site, labels: NDArray[np.int64]) -> None:
        assert site.cloud is not None
        assert site.relay is not None
        assert site.agent is not None
        self.site, self.cloud, self.relay, self.agent = site, site.cloud, site.relay, site.agent
        self.checks: list[Check] = []
        self.tally = Tally(labels)
        self.fleet: Fleet | None = None

    def figures(self) -> Figures:
        """For the view; any thread may ask."""
        counts = self.tally.counts()
        return Figures(
            sent=counts.sent,
            answered=counts.answered,
            waiting=counts.waiting,
            lost=counts.lost,
            wrong=counts.wrong,
            p50_ms=counts.latency_ms(0.5),
            p99_ms=counts.latency_ms(0.99),
            answers={version.name: version.answers for version in self.tally.versions.values()},
            activities=dict(sorted(self.tally.last_activity.items())),
            results=self.cloud.result_count,
            samples=self.cloud.sample_count,
            cloud_cut=self.relay.is_cut,
        )

    def phase(self, title: str) -> None:
        self.view.phase(title)

    def note(self, text: str) -> None:
        self.view.note(text)

    def check(self, name: str, held: bool, detail: str) -> None:
        self.checks.append(Check(name, bool(held), detail))
        self.view.check(self.checks[-1])

    def until(self, condition: Callable[[], bool], seconds: float, what: str, *, fatal: bool = True) -> None:
        """Returns when `condition` is true, or, if not `fatal`, after `seconds`."""
        end = time.monotonic() + seconds
        while not condition():
            if not self.agent.running:
                raise self.agent.failure("ended")
            if time.monotonic() > end:
                if not fatal:
                    return
                raise self.agent.failure(f"was too slow: waited {seconds:g} s for {what}")
            self.view.tick()
            time.sleep(TICK_S)

    def load(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end, seconds + 1, "the load")

    def settle(self) -> None:
        """Waits until each request so far is answered or lost; the load goes on."""
        sent = self.tally.counts().sent
        self.until(lambda: self.tally.settled(sent), LOST_S + 5, "the requests to be answered or given up")

    def deploy(self, id: str, model: Package) -> dict[str, Any]:
        """Pushes it through the cloud's broker and returns the final status."""
        self.cloud.push(self.site.document(id, model))
        noted: list[str] = []

        def over() -> bool:
            for status in self.cloud.statuses(id):
                phase = status.get("phase") or ""
                if status["status"] == "IN_PROGRESS" and phase not in noted:
                    noted.append(phase)
                    self.note(f"{id}: {phase}")
            return self.cloud.outcome(id) is not None

        self.until(over, DEPLOY_S, f"the outcome of {id}")
        outcome = self.cloud.outcome(id)
        assert outcome is not None
        return outcome

    def heard(self, first: int) -> set[str]:
        return {result["meta"]["request"] for result in self.cloud.results(first)}

    def out_of_order(self, first: int) -> list[str]:
        """The results since the `first`-th that came after a later one of the same watch; asked-again ones aside."""
        highest: dict[str, int] = {}
        seen: set[str] = set()
        late = []
        for result in self.cloud.results(first):
            id = result["meta"]["request"]
            if id in seen or not self.tally.asked_once(id):
                continue
            seen.add(id)
            watch, _, number = id.rpartition(".")
            if int(number) < highest.get(watch, -1):
                late.append(id)
            highest[watch] = max(highest.get(watch, -1), int(number))
        return late
