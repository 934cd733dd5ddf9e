"""The targets, and what was measured of each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.summary import Figure, figure, ratio


@dataclass(frozen=True)
class Target:
    """A bound and what was measured: `most` or `least` is None where the other one counts."""

    title: str
    measured: Figure | None
    most: float | None = None
    least: float | None = None
    unit: str = "x"

    @property
    def met(self) -> bool | None:
        """Whether the median keeps to the bound; None: it was not measured."""
        if self.measured is None:
            return None
        over = self.most is not None and self.measured.median > self.most
        return not over and not (self.least is not None and self.measured.median < self.least)


def targets(found: dict[str, Any]) -> list[Target]:
    """All targets, over what a run of the bench has found."""
    samples = found.get("samples", [])
    alone = found.get("footprint", [])
    return [
        Target("QoS 1, one outstanding, p50, all on one core, to the loop",
               ratio(samples, "one-pinned", "agent", "loop", "p50"), most=0.95),
        Target("the same, not pinned", ratio(samples, "one", "agent", "loop", "p50"), most=1.35),
        Target("QoS 1, 64 outstanding, throughput, to the loop",
               ratio(samples, "many", "agent", "loop", "rate"), least=2.5),
        Target("the same, to Node-RED", ratio(samples, "many", "agent", "node-red", "rate"), least=10),
        Target("QoS 0, 64 outstanding, throughput, to the loop",
               ratio(samples, "many-qos0", "agent", "loop", "rate"), least=2.5),
        Target("images, throughput, one worker, to the loop",
               ratio(samples, "image", "agent-image", "loop-image", "rate"), least=1.3),
        Target("images, throughput, two workers, to the loop",
               ratio(samples, "image", "agent-image-2", "loop-image", "rate"), least=1.9),
        Target("processor a message with 64 outstanding, agent and worker, to the loop",
               ratio(samples, "many", "agent", "loop", "cpu"), most=1.3),
        Target("processor a message with one outstanding, to the loop",
               ratio(samples, "one", "agent", "loop", "cpu"), most=1.3),
        Target("idle memory (PSS) of agent and one worker, to the loop", _memory(alone, "agent", "loop"), most=1.2),
        Target("the same, to Node-RED", _memory(alone, "agent", "node-red"), most=0.5),
        Target("the agent alone, idle, USS", figure(_idle(alone, "agent", "agent", "uss")), most=25, unit="MB"),
        Target("start to first answer, to Node-RED", _starts(alone, "agent", "node-red"), most=0.3),
        Target("10,000 subscriptions, p50, to 10", _grown(found.get("subscriptions", []), "p50_us"), most=1.2),
        Target("10 subscriptions, throughput, to 10,000",
               _grown(found.get("subscriptions", []), "rate", inverse=True), most=1.2),
        Target("deployment of 100 MB, to curl, sha256sum, tar, sync",
               figure(each["deployed_s"] / each["by_hand_s"] for each in found.get("floor", [])), most=0.6),
        Target("requests' p99 during a deployment, to without",
               figure(each["during_p99_us"] / each["without_p99_us"] for each in found.get("under_load", [])), most=2),
        Target("idle processor, agent and worker",
               figure(100 * each["idle_cpu"] for each in alone if each["contender"] == "agent" and "idle_cpu" in each),
               most=0.2, unit="%"),
    ]  # fmt: skip


def _idle(alone: Iterable[dict[str, Any]], contender: str, role: str, kind: str) -> list[float]:
    return [each["idle_mb"][role][kind] for each in alone if each["contender"] == contender and "idle_mb" in each]


def _memory(alone: Sequence[dict[str, Any]], ours: str, theirs: str) -> Figure | None:
    pairs = zip(_idle(alone, ours, "all", "pss"), _idle(alone, theirs, "all", "pss"), strict=False)
    return figure(a / b for a, b in pairs)


def _starts(alone: Sequence[dict[str, Any]], ours: str, theirs: str) -> Figure | None:
    first = {(each["contender"], each["round"]): each["first_s"] for each in alone}
    rounds = {number for _, number in first}
    return figure(first[ours, n] / first[theirs, n] for n in rounds if (ours, n) in first and (theirs, n) in first)


def _grown(samples: Sequence[dict[str, Any]], of: str, *, inverse: bool = False) -> Figure | None:
    by = {(each["size"], each["round"]): each[of] for each in samples}
    rounds = {number for _, number in by}
    ratios = [by[10_000, n] / by[10, n] for n in rounds if (10_000, n) in by and (10, n) in by]
    return figure(1 / each if inverse else each for each in ratios)
