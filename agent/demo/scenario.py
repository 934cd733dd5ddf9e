"""What the demonstration does, step by step, and what has to hold at each: nothing here is staged, all is observed.

The watches' load runs from the first deployment to the end. Each step ends when every request that was sent in it is
answered (or given up as lost), so that no fault hides behind a step's end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from agent.demo import train
from agent.demo.site import Models, Site
from agent.demo.stage import CATCH_UP_S, DEPLOY_S, ONLINE_S, Stage
from agent.demo.tally import Version
from agent.demo.view import View
from agent.demo.watches import Fleet
from agent.errors import TransientError

WATCHES = 4
RATE = 240.0  # windows a second, of all watches together
LEAST_RATE = 200.0
CUT_S = 5.0


class Scenario(Stage):
    """One run. Every method blocks; all on the caller's thread."""

    def __init__(self, site: Site, models: Models) -> None:
        super().__init__(site, models.test.labels)
        self._models = models
        self._rows = train.all_features(models.test.windows)

    def run(self, view: View, seconds: float) -> None:
        """All steps, `seconds` of load around each. Stops early where going on makes no sense.

        Raises:
            AgentError: a process ended or a step took too long.
        """
        self.view = view
        started = time.monotonic()
        self._come_online()
        self._first_model(seconds)
        self._second_model_under_load(seconds)
        self._broken_model(seconds)
        self._cloud_cut_off(seconds)
        self._end(started)

    def stop(self) -> None:
        """Disconnects the watches. Idempotent."""
        if self.fleet:
            self.fleet.stop()

    # The steps.

    def _come_online(self) -> None:
        self.phase("The agent starts with nothing but its topics.yaml")
        self.until(lambda: self.cloud.online, ONLINE_S, "the agent to say that it is online")
        self.note(f"online; local broker on port {self.site.local_port}, cloud's on {self.site.cloud_port}")

    def _first_model(self, seconds: float) -> None:
        models = self._models
        self.phase("The cloud deploys v1: a Neo directory (dlr) in a .tar.gz")
        v1 = self._know("v1", models.v1.digest, models.first)
        outcome = self.deploy("demo-v1", models.v1)
        self.check("v1 is deployed", outcome["status"] == "SUCCEEDED", _said(outcome))
        if outcome["status"] != "SUCCEEDED":
            raise TransientError("DEMO_FAILED", f"without v1 there is nothing to show: {_said(outcome)}")
        self.phase(f"{WATCHES} watches replay the test recordings, {RATE:g} windows a second")
        self.fleet = Fleet(self.site.local_port, models.test.windows, self.tally, watches=WATCHES, rate=RATE)
        self.fleet.start()
        self.load(seconds)
        self.settle()
        self._accuracy(v1, models.first)

    def _second_model_under_load(self, seconds: float) -> None:
        models = self._models
        self.phase("The cloud deploys v2 under load: ONNX in a .zip")
        v2 = self._know("v2", models.v2.digest, models.second)
        outcome = self.deploy("demo-v2", models.v2)
        self.check("v2 is deployed under load", outcome["status"] == "SUCCEEDED", _said(outcome))
        self.until(lambda: v2.answers > 0, DEPLOY_S, "the first answer of v2")
        swapped = self.tally.counts().sent
        self.load(seconds)
        self.settle()
        served = self.tally.served_by(swapped)
        self.check("the swap is complete", served == {"v2"}, f"requests after it were served by {_names(served)}")
        self._accuracy(v2, models.second)
        self._none_lost("nothing lost by the swap")

    def _broken_model(self, seconds: float) -> None:
        self.phase("The cloud deploys a broken archive: one bit of v3 is turned")
        outcome = self.deploy("demo-broken", self._models.broken)
        code = (outcome.get("reason") or {}).get("code")
        refused = outcome["status"] == "FAILED" and code == "MODEL_DIGEST_MISMATCH"
        self.check("the broken archive is refused", refused, _said(outcome))
        after = self.tally.counts().sent
        self.load(seconds / 2)
        self.settle()
        served = self.tally.served_by(after)
        group = self.cloud.state.get("group")
        goes_on = served == {"v2"} and group == "demo-v2"
        self.check("what ran goes on", goes_on, f"served by {_names(served)}, group {group}")
        self._none_lost("nothing lost by the broken archive")

    def _cloud_cut_off(self, seconds: float) -> None:
        self.phase(f"The cloud is cut off for {CUT_S:g} seconds")
        first, known = self.tally.counts().sent, self.cloud.result_count
        samples_before = self.cloud.sample_count
        self.relay.cut()
        start = time.monotonic()
        self.load(CUT_S)
        last = self.tally.counts().sent
        self.settle()
        self.note(f"{last - first} requests were answered meanwhile; the cloud heard nothing of them")
        self.relay.restore()
        restored = time.monotonic()
        self.phase("The cloud is back")
        cut_off = self.tally.answered_ids(first, last)
        self.until(
            lambda: cut_off <= self.heard(known), CATCH_UP_S, "all results of the cut to reach the cloud", fatal=False
        )
        self.load(seconds / 2)
        self.settle()
        heard = self.heard(known)
        detail = f"{len(cut_off & heard)} of {len(cut_off)} results of the cut arrived"
        self.check("nothing lost by the cut", cut_off <= heard and last - first == len(cut_off), detail)
        during = [r for r in self.cloud.results(known) if start + 0.5 < r["arrived_s"] < restored]
        self.check("the cut was one", not during, f"{len(during)} results passed while the cable was cut")
        late = self.out_of_order(known)
        self.check("all in order", not late, f"{len(late)} results overtook others {late[:3] or ''}".rstrip())
        self._samples(samples_before)
        self._none_lost("watches were served throughout")

    def _end(self, started: float) -> None:
        self.phase("The end")
        assert self.fleet
        self.fleet.finish()
        self.settle()
        counts = self.tally.counts()
        answered = self.tally.answered_ids(0, counts.sent)
        self.until(lambda: answered <= self.heard(0), CATCH_UP_S, "all results to reach the cloud", fatal=False)
        missing = answered - self.heard(0)
        self.check("every result reached the cloud", not missing, f"{len(answered)} answered, {len(missing)} missing")
        rate = counts.sent / self.fleet.running_s
        slow = "" if rate >= LEAST_RATE else f"; {LEAST_RATE:g} were promised: this machine has too much else to do"
        self.check("load", not slow, f"{rate:.0f} windows a second, {counts.sent} in all{slow}")
        exact = counts.answered == counts.sent and not counts.doubled
        again = f", {counts.again} asked again" if counts.again else ""
        self.check(
            "every request answered exactly once",
            exact,
            f"{counts.answered} of {counts.sent}, {counts.doubled} doubled{again}",
        )
        self.check("no answer wrong", not counts.wrong, _firsts(self.tally.wrongs) or f"{counts.answered} compared")
        self.note(f"{time.monotonic() - started:.0f} seconds; p50 {counts.latency_ms(0.5):.1f} ms")

    # What they compare.

    def _know(self, name: str, digest: str, network: train.Network) -> Version:
        return self.tally.know(digest, name, network.scores(self._rows))

    def _accuracy(self, version: Version, network: train.Network) -> None:
        by_hand = float(np.mean(network.scores(self._rows).argmax(1) == self._models.test.labels))
        wrongs = len(self.tally.wrongs)
        seen = f"{version.accuracy:.1%} of {version.answers} answers are right"
        detail = f"{seen}; by hand {by_hand:.1%} of the {len(self._rows)} windows"
        same = not wrongs and version.answers > 0 and abs(version.accuracy - by_hand) < 0.03
        self.check(f"{version.name} answers as the model run by hand", same, detail)

    def _none_lost(self, name: str) -> None:
        counts = self.tally.counts()
        detail = f"{counts.answered} answered, {counts.lost} lost, {counts.wrong} wrong"
        self.check(name, not counts.lost and not counts.wrong, detail)

    def _samples(self, first: int) -> None:
        samples = self.cloud.samples(first)
        twice = len(samples) - len({sample["id"] for sample in samples})
        sorted_times = [sample["timestamp"] for sample in samples]
        in_order = sorted_times == sorted(sorted_times)
        detail = f"{len(samples)} samples since the cut, {'in order' if in_order else 'out of order'}, {twice} twice"
        self.check("training data arrived", bool(samples) and in_order, detail)


def _said(outcome: dict[str, Any]) -> str:
    reason = outcome.get("reason") or {}
    return f"{outcome['status']}{' ' + reason['code'] if reason.get('code') else ''}"


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nobody"


def _firsts(texts: Sequence[str]) -> str:
    return f"{len(texts)}, such as {'; '.join(texts[:2])}" if texts else ""
