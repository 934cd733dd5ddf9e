"""A day's bytes: held over weeks, restarts and clocks, spent on what is worth most. The clock is made up."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from agent.capture.budget import DAY_S, Budget
from agent.capture.keeper import Keeper
from agent.capture.policy import Capture, Entropy, Random
from agent.capture.received import parse
from agent.capture.samples import Sample
from agent.capture.settled import Settled
from agent.inference.requests import Kept, Origin
from agent.messages import JSON, Outbound
from tests.agent_kit import CORE, function, subscription
from tests.conftest import Site
from tests.mqtt_kit import wait_until

MONDAY = 20_600 * DAY_S
ORIGIN = Origin("f", "m", "sha256:00", "d1")


@dataclass
class Core:
    """A keeper with a made-up clock; what it sends waits here, as in the spool of a core that is offline."""

    bytes_per_day: int | None
    policy: Capture = field(default_factory=lambda: Capture(Entropy(0.0)))
    most: int = 100_000

    def __post_init__(self) -> None:
        self.at = MONDAY
        self.chance = random.Random(5)
        self.random = self.chance.random
        self.waiting: list[tuple[float, float, int]] = []  # time, value, bytes
        self.disk: dict[str, Any] = {}
        self.start()

    def start(self) -> None:
        """As after a start of the agent: with what the disk remembers, and nothing else."""
        budget = Budget(self.bytes_per_day)
        budget.restore(json.loads(json.dumps(self.disk)), self.at)
        self.lease(budget)
        self.keeper = Keeper("c/{function}", JSON, budget, self)
        self.keeper.use({"f": (self.policy, "v")})

    def now(self) -> float:
        return self.at

    clock = now

    def timestamp(self) -> str:
        return "2026-11-23T06:00:00.000Z"

    def most_bytes(self) -> int:
        return self.most

    def send(self, out: Outbound, value: float, done: Callable[[], None]) -> None:
        self.waiting.append((self.at, value, len(out.payload)))
        done()

    def spill(self, sample: Sample, done: Callable[[], None]) -> str | None:
        return "too_large"

    def request(self, certainty: float, padding: int = 200) -> float:
        """One request, whose prediction is so sure of one of two classes; returns what its sample is worth."""
        output = json.dumps({"scores": [certainty, 1 - certainty]}).encode()
        event = json.dumps({"x": "." * padding}).encode()
        settled = Settled(f"s{len(self.waiting)}", ORIGIN, "t", (JSON, event), (JSON, output))
        self.keeper.consider(settled, lambda: lambda: None)
        self.lease(self.keeper.budget)
        return entropy(certainty)

    def lease(self, budget: Budget) -> None:
        """What the desk does beside: writes down what is to be spent next."""
        if (wanted := budget.wanted()) is not None:
            self.disk = budget.snapshot(wanted)
            budget.grant(budget.day, wanted)

    def days(self) -> dict[int, list[tuple[float, float, int]]]:
        found: dict[int, list[tuple[float, float, int]]] = {}
        for each in self.waiting:
            found.setdefault(int(each[0] // DAY_S), []).append(each)
        return found


def entropy(p: float) -> float:
    return -sum(x * math.log2(x) for x in (p, 1 - p) if x > 0)


def busy_by_day(chance: random.Random, at: float, per_day: int) -> float:
    """The time to the next request: many at noon, few at night."""
    rate = per_day / DAY_S * (1.05 - math.cos(2 * math.pi * (at % DAY_S) / DAY_S))
    return chance.expovariate(rate)


@pytest.mark.parametrize("restarts", [False, True], ids=["running", "killed three times a day"])
def test_a_week_offline_holds_the_budget_and_keeps_what_is_worth_most(
    restarts: bool, record_property: Callable[[str, object], None]
) -> None:
    most, chance, core = 200_000, random.Random(8), Core(200_000)
    offered: dict[int, list[float]] = {}
    killed_at = MONDAY
    while core.at < MONDAY + 7 * DAY_S:
        core.at += busy_by_day(chance, core.at, 4000)
        certainty = chance.betavariate(8, 1) if chance.random() < 0.9 else chance.uniform(0.4, 0.6)
        offered.setdefault(int(core.at // DAY_S), []).append(core.request(min(certainty, 1 - 1e-9)))
        if restarts and core.at - killed_at > DAY_S / 3:
            killed_at = core.at
            core.start()
    tally = core.keeper.tallies["f"]
    shares = []
    for day, kept in list(core.days().items())[:7]:
        spent = sum(size for _, _, size in kept)
        assert spent <= most, f"day {day - 20_600}"
        # On the first day nobody knows yet that the evening brings little.
        least = 0.5 if day == 20_600 or restarts else 0.9
        assert spent > most * least, f"day {day - 20_600} left {most - spent} unused"
        best = sorted(offered[day], reverse=True)[: len(kept)]
        even = sum(offered[day]) / len(offered[day]) * len(kept)
        shares.append((sum(value for _, value, _ in kept) - even) / (sum(best) - even))
    record_property("share_of_the_best_possible_choice", f"{sum(shares) / len(shares):.2f}")
    assert min(shares) > 0.6, shares
    assert sum(shares) / len(shares) > 0.8, shares
    if not restarts:
        assert tally.kept["entropy"] + tally.dropped["budget"] == tally.seen == sum(map(len, offered.values()))
        assert tally.kept["entropy"] == len(core.waiting)


def test_a_stream_that_is_slower_than_the_budget_loses_nothing() -> None:
    core = Core(200_000)
    for _ in range(3 * 48):
        core.at += 1800
        core.request(0.999)
    assert len(core.waiting) == 3 * 48


def test_a_burst_does_not_spend_the_day() -> None:
    core = Core(200_000)
    core.at += DAY_S / 4
    for _ in range(5000):
        core.at += 0.01
        core.request(0.9)
    assert core.keeper.budget.spent < 200_000 / 8, "the rest of the day is worth something, too"


def test_what_a_function_asks_for_is_kept_as_long_as_anything_is_left() -> None:
    core, chance = Core(20_000), random.Random(2)
    core.keeper.use({})
    for _ in range(1000):
        core.at += chance.expovariate(1.0)
        settled = Settled("s", ORIGIN, "t", (JSON, b"{}"), None, [Kept("odd")])
        core.keeper.consider(settled, lambda: lambda: None)
        core.lease(core.keeper.budget)
    assert 19_000 < core.keeper.budget.spent <= 20_000
    assert core.keeper.tallies["f"].seen == 1000


def test_what_comes_late_in_the_day_gets_what_is_left() -> None:
    core = Core(200_000)
    core.at += DAY_S - 600
    for _ in range(1000):
        core.at += 0.55
        core.request(0.9)
    spent = core.keeper.budget.spent
    assert 200_000 * 0.9 < spent <= 200_000


def test_random_samples_under_a_budget_are_a_uniform_choice() -> None:
    core, chance = Core(100_000, Capture(Random(1.0))), random.Random(3)
    certainties = []
    while core.at < MONDAY + DAY_S:
        core.at += chance.expovariate(4000 / DAY_S)
        before, certainty = len(core.waiting), chance.uniform(0.5, 1)
        core.request(certainty)
        if len(core.waiting) > before:
            certainties.append(certainty)
    assert len(certainties) > 100
    assert sum(certainties) / len(certainties) == pytest.approx(0.75, abs=0.04)


def test_a_clock_that_is_set_back_begins_no_second_day() -> None:
    core = Core(20_000)
    for at in (0.0, DAY_S, 0.0, DAY_S, 0.5 * DAY_S):
        core.at = MONDAY + DAY_S / 2 + at
        for _ in range(3000):
            core.at += 10
            core.request(0.5)
    assert sum(size for _, _, size in core.waiting) <= 2 * 20_000


def test_a_memory_that_is_not_ours_is_none() -> None:
    for found in (
        {},
        {"day": "x"},
        {"day": 20_600, "spent": 1, "histogram": [1], "since": 0, "faded": 0},
        {"day": None},
    ):
        budget = Budget(1000)
        budget.restore(found, MONDAY)
        budget.turn(MONDAY)
        budget.grant(budget.day, budget.wanted() or 0)
        assert budget.admit(0.5, 10, MONDAY, random.random)
    budget = Budget(1000)
    far = {"day": 10**9, "spent": 1000, "histogram": [0.0] * 128, "since": 0, "faded": 0}
    budget.restore({**far, "usual": [None] * 24, "offered": [0.0] * 24}, MONDAY)
    assert not budget.admit(0.5, 10, MONDAY, random.random), "a clock that was far ahead gives no second budget"
    assert budget.admit(0.5, 10, MONDAY + DAY_S, random.random), "and ends none for good"


def test_without_a_budget_all_is_kept() -> None:
    core = Core(None)
    for _ in range(100):
        core.request(0.9)
    assert len(core.waiting) == 100


def test_what_is_too_large_for_a_message_costs_nothing() -> None:
    core = Core(2_000_000)
    core.most = 1000
    core.request(0.9, padding=5000)
    assert core.waiting == []
    assert core.keeper.budget.spent == 0
    assert core.keeper.told()["functions"]["f"]["dropped"] == {"too_large": 1}


def test_the_days_count_survives_a_kill_and_a_restart(site: Site) -> None:
    core = site.core(more={"capture": {"bytes_per_day": "1 MB", "format": "msgpack"}})
    today = lambda: core.status()["capture"]["today"]["bytes"]  # noqa: E731
    with site.device() as device, site.observer() as cloud, core:
        core.wait_linked()
        cloud.subscribe(f"marram/{CORE}/capture/#")
        core.deploy(
            core.group(
                "b1",
                resources=[],
                functions=[function("echo", marram={"Capture": {"Strategy": "random", "Rate": 1}})],
                subscriptions=[subscription("local", "s/+", "function:echo")],
            )
        )
        for n in range(5):
            device.publish("s/1", json.dumps({"n": n}))
        wait_until(lambda: len(cloud.received) >= 5, "the samples")
        inputs = [parse(message.payload).given.data for message in list(cloud.received)]
        assert sorted(json.loads(each)["n"] for each in inputs) == list(range(5))
        spent = today()
        assert spent > 1000
        wait_until(lambda: (core.state / "capture.json").exists(), "the lease on the disk")
        core.kill()
        core.start()
        assert today() >= spent, "what was leased counts as spent"
        leased = today()
        assert leased <= spent + 2 * 1_000_000 / 16 + 1
        assert core.stop() == 0
        core.start()
        assert today() >= spent
