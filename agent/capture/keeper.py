"""From a settled request to its sample: kept or not, within the budget, counted, and on its way. Pure.

Clock, randomness, the way out and the place for what is too large for a message are ports.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from agent.capture.budget import Budget
from agent.capture.judges import Bench
from agent.capture.policy import Capture
from agent.capture.samples import Payload, Sample, size, to_json, to_msgpack
from agent.capture.seen import Seen
from agent.capture.settled import Hold, Settled, Tally
from agent.errors import RejectedError
from agent.inference.requests import Origin
from agent.messages import JSON, MSGPACK, Outbound, Properties

log = logging.getLogger(__name__)

ASKED = 1.0  # the value of what a function asks for


class Ports(Protocol):
    def now(self) -> float: ...
    def clock(self) -> float:
        """Seconds since 1970."""

    def random(self) -> float: ...
    def timestamp(self) -> str: ...
    def most_bytes(self) -> int:
        """The largest payload that the samples' broker takes now."""

    def send(self, out: Outbound, value: float, done: Callable[[], None]) -> None:
        """On its way to the cloud; RejectedError where it can never go."""

    def spill(self, sample: Sample, done: Callable[[], None]) -> str | None:
        """Keeps a sample whose payloads go to S3 first; else why not: ``too_large`` (no such place), ``disk``."""


class Keeper:
    """Keeps samples.

    Args:
        topic: of samples, with `{function}`, `{resource}` and `{deployment}` to fill in.
        encoding: of samples, ``application/json`` or ``application/msgpack``.

    Attributes:
        budget: the bytes that may be kept.
        tallies: by function.
        has_news: whether a reference has become whole; whoever writes it down says False.
    """

    def __init__(self, topic: str, encoding: str, budget: Budget, ports: Ports) -> None:
        self.budget = budget
        self.tallies: dict[str, Tally] = {}
        self.has_news = False
        self._topic = topic
        self._encoding = encoding
        self._ports = ports
        self._benches: dict[str, tuple[tuple[Capture, str | None], Bench]] = {}
        self._references: Mapping[str, Any] = {}
        self._warned: set[tuple[str, str]] = set()

    # -- policies -----------------------------------------------------------------------------------------------------

    def use(self, policies: Mapping[str, tuple[Capture, str | None]]) -> None:
        """Puts these policies, by function with the version of its model, into force.

        What a policy remembers stays where neither it nor the version changes.
        """
        before, self._benches = self._benches, {}
        for function, key in policies.items():
            known = before.get(function)
            self._benches[function] = known if known and known[0] == key else (key, self._bench(function, *key))

    def _bench(self, function: str, policy: Capture, version: str | None) -> Bench:
        bench = Bench(policy)
        found = self._references.get(function)
        if isinstance(found, dict) and found.get("policy") == repr(policy) and found.get("version") == version:
            for meter, reference in zip(bench.meters, found.get("meters", ()), strict=False):
                if isinstance(reference, dict):
                    meter.restore(reference)
        return bench

    def references(self) -> dict[str, Any]:
        """What the drift of each function is compared with, for `restore`."""
        found = {}
        for function, ((policy, version), bench) in self._benches.items():
            meters = [meter.snapshot() for meter in bench.meters]
            if any(meters):
                found[function] = {"policy": repr(policy), "version": version, "meters": meters}
        return found

    def restore(self, references: Mapping[str, Any]) -> None:
        """Has policies that come into force from now on go on with these references."""
        self._references = references

    # -- samples ------------------------------------------------------------------------------------------------------

    def consider(self, settled: Settled, hold: Hold) -> None:
        """Keeps a sample of a request, or does not.

        Args:
            hold: called for each sample that is kept; what it gives is called when the sample is safe.
        """
        _, bench = self._benches.get(settled.origin.function, (None, None))
        if bench is None and not settled.asked:
            return
        ports, tally = self._ports, self._tally(settled.origin.function)
        tally.seen += 1
        if settled.asked:
            for n, each in enumerate(settled.asked, 1):
                id = settled.id if n == 1 else f"{settled.id}-{n}"
                given, made = each.given or settled.given, each.made or settled.made
                self._keep(settled, id, each.reason, given, made, hold, None)
        if bench is None or settled.asked:
            return
        seen = Seen(settled.topic, settled.given, settled.made, bench.policy.scores)
        why = bench.reason(seen, ports.now(), ports.random)
        self.has_news |= bench.has_new_reference()
        if bench.needs_scores and seen.lacks_scores:
            self._note_missing(settled.origin.function, tally)
        if why is not None:
            value = bench.value(seen, ports.random)
            self._keep(settled, settled.id, why, settled.given, settled.made, hold, value)

    def _keep(
        self,
        settled: Settled,
        id: str,
        reason: str,
        given: Payload,
        made: Payload | None,
        hold: Hold,
        value: float | None,
    ) -> None:
        """Keeps a sample within the budget. `value`: None for one that the function asks for."""
        worth = ASKED if value is None else value
        ports, tally = self._ports, self._tally(settled.origin.function)
        sample = Sample(id, reason, worth, settled.origin, settled.topic, ports.timestamp(), given, made)
        bytes_ = size(sample)
        if not self.budget.admit(worth, bytes_, ports.clock(), ports.random, wanted=value is None):
            tally.dropped["budget"] += 1
            return
        # Not even encoded where it cannot be small enough: a camera's picture would be copied for nothing.
        if len(given[1]) + len(made[1] if made else b"") > ports.most_bytes() or not self._send(sample, hold):
            release = hold()
            why = ports.spill(sample, release)
            if why is not None:
                release()
                self.budget.give_back(bytes_)
                tally.dropped[why] += 1
                self._note_too_large(settled.origin.function, why, bytes_)
                return
        tally.kept[reason] += 1
        tally.bytes += bytes_

    def _send(self, sample: Sample, hold: Hold) -> bool:
        """Sends a sample; False where it is too large for a message."""
        out = self.message(sample)
        if len(out.payload) > self._ports.most_bytes():
            return False
        release = hold()
        try:
            self._ports.send(out, sample.value, release)
        except RejectedError:  # logged and counted by the outbox
            release()
            self._tally(sample.origin.function).dropped["refused"] += 1
        return True

    def message(self, sample: Sample) -> Outbound:
        """A sample as it is published."""
        body = to_msgpack(sample) if self._encoding == MSGPACK else to_json(sample)
        return Outbound(self._topic_of(sample.origin), body, 1, properties=Properties(content_type=self._encoding))

    def drop(self, function: str, why: str) -> None:
        """Counts a sample that was kept and had to go after all."""
        self._tally(function).dropped[why] += 1

    def _topic_of(self, origin: Origin) -> str:
        topic = self._topic.replace("{function}", origin.function)
        return topic.replace("{resource}", origin.model or "-").replace("{deployment}", origin.deployment or "-")

    def _tally(self, function: str) -> Tally:
        return self.tallies.setdefault(function, Tally())

    # -- what is said once --------------------------------------------------------------------------------------------

    def _note_missing(self, function: str, tally: Tally) -> None:
        tally.without_scores += 1
        if self._is_news(function, "scores"):
            log.warning(
                "CAPTURE_NO_SCORES: function %s: its Capture needs scores, and its results have none that can be told;"
                " name where they are with Capture.Scores (docs/capture.md)",
                function,
            )

    def _note_too_large(self, function: str, why: str, bytes_: int) -> None:
        if why == "too_large" and self._is_news(function, why):
            log.warning(
                "CAPTURE_TOO_LARGE: function %s: a sample of %d bytes is over the %d of a message, and is dropped;"
                " name a bucket for it with `capture.s3` in topics.yaml (docs/capture.md)",
                function, bytes_, self._ports.most_bytes(),
            )  # fmt: skip

    def _is_news(self, function: str, what: str) -> bool:
        if (function, what) in self._warned:
            return False
        self._warned.add((function, what))
        return True

    def told(self) -> dict[str, Any]:
        """The counts, for `marram status`."""
        functions = {name: self._told(name, tally) for name, tally in sorted(self.tallies.items())}
        return {"today": self.budget.told(), "functions": functions}

    def _told(self, function: str, tally: Tally) -> dict[str, Any]:
        bench = self._benches[function][1] if function in self._benches else None
        drift = [round(d, 4) for meter in (bench.meters if bench else ()) if (d := meter.distance) is not None]
        return {**tally.told(), **({"drift": max(drift)} if drift else {})}


def encoding_of(name: str) -> str:
    """The content type of ``json`` or ``msgpack``."""
    return MSGPACK if name == "msgpack" else JSON
