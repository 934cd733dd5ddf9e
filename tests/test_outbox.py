"""The way out: straight or through the spool, in order, and nothing twice. The spool is a real one, the link a port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.cloud import lanes
from agent.cloud import outbox as module
from agent.cloud.forwarder import WINDOW, Refused
from agent.cloud.outbox import Outbox
from agent.cloud.spool import Spool
from agent.errors import RejectedError, TransientError
from agent.messages import Outbound, Properties
from agent.settings import SpoolLimits

DEADLINE_S = 20.0
LIMITS = SpoolLimits(tries=3)


@dataclass
class Sent:
    """What a link has taken and its broker has not acknowledged."""

    out: Outbound
    done: Callable[[], None] | None
    refused: Refused | None


class Broker:
    """A link and its broker: what arrived, in order; acknowledges by itself or when told."""

    def __init__(self, *, connected: bool = True, acknowledges: bool = True) -> None:
        self.connected = connected
        self.acknowledges = acknowledges
        self.arrived: list[str] = []
        self.outs: list[Outbound] = []
        self.refuses: dict[str, str] = {}  # topics, and why
        self.most_in_flight = 0
        self.full = False
        self.under_way: list[Sent] = []
        self._changed = asyncio.Event()

    def publish(
        self,
        out: Outbound,
        done: Callable[[], None] | None = None,
        refused: Refused | None = None,
    ) -> None:
        if not self.connected:
            raise TransientError("LINK_DOWN", "down")
        if self.full:
            raise TransientError("LINK_FULL", "full")
        if out.payload == b"too large":
            raise RejectedError("MESSAGE_TOO_LARGE", "too large")
        self.arrived.append(out.topic)
        self.outs.append(out)
        self._changed.set()
        why = self.refuses.get(out.topic)
        if why is not None and refused is not None:
            asyncio.get_running_loop().call_soon(refused, why, why == "quota exceeded")
            return
        if not out.qos:
            if done:
                done()
            return
        self.under_way.append(Sent(out, done, refused))
        self.most_in_flight = max(self.most_in_flight, len(self.under_way))
        if self.acknowledges:
            asyncio.get_running_loop().call_soon(self.acknowledge, 1)

    def acknowledge(self, count: int = 1 << 30) -> None:
        """PUBACKs for the oldest `count` in flight, unless the connection is lost."""
        for _ in range(min(count, len(self.under_way)) if self.connected else 0):
            sent = self.under_way.pop(0)
            if sent.done:
                sent.done()
        self._changed.set()

    def refuse(self, why: str, *, for_now: bool) -> None:
        """A PUBACK that refuses the oldest in flight."""
        sent = self.under_way.pop(0)
        assert sent.refused
        sent.refused(why, for_now)
        self._changed.set()

    def lose(self) -> None:
        """The connection is lost; whether the broker got what is in flight nobody knows."""
        self.connected = False

    def come_back(self) -> None:
        """A new connection: the link itself sends again what is in flight, before anything else."""
        self.connected = True
        if self.acknowledges:
            asyncio.get_running_loop().call_soon(self.acknowledge)

    @property
    def in_flight(self) -> int:
        return len(self.under_way)

    @property
    def outstanding(self) -> dict[int, Sent]:
        return dict(enumerate(self.under_way))

    def divert(self, packet_id: int, done: Callable[[], None], refused: Refused) -> None:
        self.under_way[packet_id].done, self.under_way[packet_id].refused = done, refused

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            self._changed.clear()
            await self._changed.wait()

    async def has(self, count: int) -> None:
        await self.until(lambda: len(self.arrived) >= count)


class Core:
    """An outbox with its spool and two brokers, and what is safe so far."""

    def __init__(self, spool: Spool, **brokers: Broker) -> None:
        self.spool = spool
        self.links = brokers
        self.outbox = Outbox(spool, brokers, LIMITS)
        self.safe: list[str] = []
        self._safe_changed = asyncio.Event()

    def send(
        self, topic: str, kind: str = "result", *, link: str = "cloud", qos: int = 1, payload: bytes = b""
    ) -> None:
        self.outbox.send(link, kind, Outbound(topic, payload, qos), lambda: self._is_safe(topic))

    def _is_safe(self, topic: str) -> None:
        self.safe.append(topic)
        self._safe_changed.set()

    async def all_safe(self, count: int) -> None:
        while len(self.safe) < count:
            self._safe_changed.clear()
            await self._safe_changed.wait()

    async def empty(self, link: str = "cloud") -> None:
        await self.links[link].until(lambda: not self.spool.backlog(link))


@asynccontextmanager
async def core(folder: Path, **brokers: Broker) -> AsyncIterator[Core]:
    spool = Spool(folder / "spool.db", loop=asyncio.get_running_loop(), limits=LIMITS)
    await spool.open()
    made = Core(spool, **brokers)
    try:
        yield made
    finally:
        await made.outbox.stop()
        await spool.close()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


def names(count: int, start: int = 0) -> list[str]:
    return [f"t/{n}" for n in range(start, count)]


def test_a_result_goes_straight_to_a_link_that_is_up(tmp_path: Path) -> None:
    async def main() -> None:
        cloud = Broker(acknowledges=False)
        async with core(tmp_path, cloud=cloud) as it:
            it.send("t/0")
            assert cloud.arrived == ["t/0"]  # in the same turn of the loop
            assert it.safe == []  # not before its PUBACK
            cloud.acknowledge()
            assert it.safe == ["t/0"]
            assert it.spool.backlog("cloud") == 0
            assert it.spool.commits == 0

    run(main)


@pytest.mark.parametrize("kind", ["capture", "report"])
def test_what_nobody_would_send_again_is_committed_first(tmp_path: Path, kind: str) -> None:
    async def main() -> None:
        cloud = Broker()
        async with core(tmp_path, cloud=cloud) as it:
            it.send("t/0", kind)
            assert cloud.arrived == []
            it.send("t/1")  # a result does not wait for it
            assert cloud.arrived == ["t/1"]
            await cloud.has(2)
            assert it.spool.commits
            await it.empty()

    run(main)


def test_what_waits_for_a_link_goes_out_in_order_when_it_is_up(tmp_path: Path) -> None:
    async def main() -> None:
        cloud = Broker(connected=False)
        async with core(tmp_path, cloud=cloud) as it:
            for n, topic in enumerate(names(500)):
                it.send(topic, ("result", "capture", "report")[n % 3])
            await it.all_safe(500)  # committed, with no cloud
            assert it.safe == names(500)
            assert cloud.arrived == []
            assert it.spool.backlog("cloud") == 500
            cloud.come_back()
            it.outbox.link_up("cloud")
            it.send("t/500")  # younger: after those that wait
            await cloud.has(501)
            await it.empty()
            for n in range(3):  # each kind for itself
                of_kind = [topic for topic in cloud.arrived if int(topic[2:]) % 3 == n and topic != "t/500"]
                assert of_kind == names(500)[n::3]
            assert cloud.arrived.index("t/500") > cloud.arrived.index("t/498")
            assert cloud.most_in_flight == WINDOW
            it.send("t/501")
            assert cloud.arrived[-1] == "t/501"  # straight again

    run(main)


def test_a_lost_connection_doubles_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        cloud = Broker(connected=False, acknowledges=False)
        async with core(tmp_path, cloud=cloud) as it:
            for topic in names(100):
                it.send(topic)
            await it.all_safe(100)
            for _ in range(12):  # each connection lasts for eight PUBACKs
                cloud.come_back()
                it.outbox.link_up("cloud")
                await cloud.until(lambda: cloud.in_flight == WINDOW or len(cloud.arrived) == 100)
                cloud.acknowledge(8)
                cloud.lose()
                it.outbox.link_down("cloud")
            cloud.acknowledges = True
            cloud.come_back()
            it.outbox.link_up("cloud")
            await it.empty()
            assert cloud.arrived == names(100)
            assert len(it.safe) == 100

    run(main)


def test_what_left_the_spool_is_not_sent_by_the_next_run(tmp_path: Path) -> None:
    async def main() -> None:
        cloud = Broker(connected=False, acknowledges=False)
        async with core(tmp_path, cloud=cloud) as it:
            for topic in names(50):
                it.send(topic, "capture")
            await it.all_safe(50)
            cloud.come_back()
            it.outbox.link_up("cloud")
            await cloud.has(WINDOW)
            cloud.acknowledge(7)
            cloud.lose()
        again = Broker(connected=False)
        async with core(tmp_path, cloud=again) as it:
            assert it.spool.backlog("cloud") == 43
            it.send("t/50", "capture")
            again.come_back()
            it.outbox.link_up("cloud")
            await again.has(44)
            await it.empty()
            assert again.arrived == names(51, 7)

    run(main)


def test_after_a_crash_nothing_overtakes_what_went_straight(tmp_path: Path) -> None:
    async def main() -> None:
        cloud = Broker(acknowledges=False)
        async with core(tmp_path, cloud=cloud) as it:
            for topic in names(3):
                it.send(topic)
            assert cloud.arrived == names(3)
            cloud.lose()  # nobody knows whether they arrived
            for topic in names(6, 3):
                it.send(topic)
            await it.all_safe(6)
            assert it.safe == names(6)
            assert it.spool.backlog("cloud") == 6
        again = Broker()  # the link of the next run, which knows nothing of what this one had under way
        async with core(tmp_path, cloud=again) as it:
            it.outbox.link_up("cloud")
            await it.empty()
            assert again.arrived == names(6)

    run(main)


def test_after_a_crash_nothing_overtakes_what_a_silent_broker_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRAIGHT_MOST", 3)

    async def main() -> None:
        cloud = Broker(acknowledges=False)
        async with core(tmp_path, cloud=cloud) as it:
            for topic in names(6):
                it.send(topic)
            await it.all_safe(6)
            assert cloud.arrived[:3] == names(3)
            cloud.lose()
        again = Broker()
        async with core(tmp_path, cloud=again) as it:
            it.outbox.link_up("cloud")
            await it.empty()
            assert again.arrived == names(6)

    run(main)


@pytest.mark.parametrize("committed_first", [True, False])
def test_what_went_straight_and_is_kept_is_sent_once_by_a_run_that_lives_on(
    tmp_path: Path, committed_first: bool
) -> None:
    async def main() -> None:
        cloud = Broker(acknowledges=False)
        async with core(tmp_path, cloud=cloud) as it:
            it.send("sample", "capture")
            await cloud.has(1)
            for topic in names(2):
                it.send(topic)
            cloud.lose()
            it.send("t/2")
            if committed_first:
                await it.all_safe(4)
            cloud.acknowledges = True
            cloud.come_back()
            it.outbox.link_up("cloud")
            await it.empty()
            await it.all_safe(4)
            assert cloud.arrived == ["sample", *names(3)]
            assert sorted(it.safe) == ["sample", *names(3)]
            it.send("t/3")
            assert cloud.arrived[-1] == "t/3"  # straight again
        again = Broker()
        async with core(tmp_path, cloud=again) as it:
            assert it.spool.backlog("cloud") == 0

    run(main)


@pytest.mark.parametrize("for_now", [True, False])
def test_what_went_straight_and_is_kept_may_still_be_refused(tmp_path: Path, for_now: bool) -> None:
    async def main() -> None:
        cloud = Broker(acknowledges=False)
        async with core(tmp_path, cloud=cloud) as it:
            it.send("t/0")
            cloud.lose()
            it.send("t/1")
            await it.all_safe(2)
            cloud.connected = cloud.acknowledges = True
            cloud.refuse("why", for_now=for_now)
            it.outbox.link_up("cloud")
            await it.empty()
            assert cloud.arrived == (["t/0", "t/1", "t/0"] if for_now else names(2))
            assert it.safe == names(2)
            assert [letter.topic for letter in await it.spool.dead_letters()] == ([] if for_now else ["t/0"])

    run(main)


def test_stopping_hands_over_what_it_can(tmp_path: Path) -> None:
    async def main() -> None:
        cloud, local = Broker(), Broker(connected=False)
        async with core(tmp_path, cloud=cloud, local=local) as it:
            for topic in names(100):
                it.send(topic, "capture")
                it.send(topic, link="local")
        assert cloud.arrived == names(100)
        assert local.arrived == []

    run(main)


def test_links_wait_for_themselves_only(tmp_path: Path) -> None:
    async def main() -> None:
        cloud, local = Broker(connected=False), Broker()
        async with core(tmp_path, cloud=cloud, local=local) as it:
            it.send("t/0")
            it.send("t/1", link="local")
            it.send("t/2", "capture", link="local")
            await local.has(2)
            await it.all_safe(3)
            assert local.arrived == ["t/1", "t/2"]
            assert it.spool.backlog("cloud") == 1

    run(main)


def test_qos_0_is_dropped_and_counted_while_the_link_is_down(tmp_path: Path) -> None:
    async def main() -> None:
        cloud = Broker(connected=False)
        async with core(tmp_path, cloud=cloud) as it:
            it.send("t/0", qos=0)
            assert it.safe == ["t/0"]
            assert it.outbox.dropped == {"cloud": 1}
            it.send("t/1")
            cloud.come_back()
            it.send("t/2", qos=0)  # has no order to keep
            assert cloud.arrived == ["t/2"]
            it.outbox.link_up("cloud")
            await it.empty()

    run(main)


def test_what_a_broker_never_takes_is_given_up_and_holds_up_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        cloud = Broker()
        async with core(tmp_path, cloud=cloud) as it:
            with pytest.raises(RejectedError, match="MESSAGE_TOO_LARGE"):
                it.send("straight", payload=b"too large")
            assert it.safe == []  # the caller knows, and says so to whom it concerns
            cloud.lose()
            it.send("t/0")
            it.send("spooled", payload=b"too large")
            it.send("t/1")
            await it.all_safe(3)
            cloud.come_back()
            it.outbox.link_up("cloud")
            await it.empty()
            assert cloud.arrived == ["t/0", "t/1"]
            assert it.outbox.refused == {"cloud": 2}
        assert caplog.text.count("MESSAGE_TOO_LARGE") == 2

    run(main)


def test_a_link_that_is_full_for_now_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.cloud.forwarder.FULL_RETRY_S", 0.01)

    async def main() -> None:
        cloud = Broker()
        async with core(tmp_path, cloud=cloud) as it:
            cloud.full = True
            for topic in names(3):
                it.send(topic)
            await it.all_safe(3)  # in the spool
            assert cloud.arrived == []
            cloud.full = False
            await cloud.has(3)
            assert cloud.arrived == names(3)
            await it.empty()

    run(main)


@pytest.mark.parametrize("straight", [True, False])
def test_what_a_broker_refuses_for_good_is_a_dead_letter_and_can_be_tried_again(tmp_path: Path, straight: bool) -> None:
    async def main() -> None:
        cloud = Broker(connected=straight)
        cloud.refuses["t/1"] = "not authorized"
        async with core(tmp_path, cloud=cloud) as it:
            for topic in names(3):
                it.send(topic)
            await it.all_safe(3)
            cloud.come_back()
            it.outbox.link_up("cloud")
            await it.empty()
            (letter,) = await it.spool.dead_letters()
            assert (letter.topic, letter.why, it.spool.dead) == ("t/1", "not authorized", 1)
            assert it.outbox.refused == {"cloud": 1}
            assert cloud.arrived == names(3)
            cloud.refuses.clear()
            await it.spool.exhume([letter.seq], retry=True)
            await it.empty()
            assert cloud.arrived == [*names(3), "t/1"]
            assert it.spool.dead == 0

    run(main)


def test_what_a_broker_refuses_for_now_is_tried_some_times_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "FIRST_PAUSE_S", 0.01)

    async def main() -> None:
        cloud = Broker(connected=False)
        cloud.refuses = dict.fromkeys(names(4), "quota exceeded")
        async with core(tmp_path, cloud=cloud) as it:
            for topic in names(4):
                it.send(topic)
            it.send("sample", "capture")
            await it.all_safe(5)
            cloud.come_back()
            it.outbox.link_up("cloud")
            await cloud.until(lambda: cloud.arrived.count("t/0") == 2)  # alone: the others wait behind it
            assert cloud.arrived.count("t/1") == 1
            assert "sample" in cloud.arrived, "another class is not held up"
            for topic in names(4, 1):
                del cloud.refuses[topic]
            await it.empty()
            assert cloud.arrived.count("t/0") == LIMITS.tries
            (letter,) = await it.spool.dead_letters()
            assert (letter.topic, letter.why) == ("t/0", "quota exceeded, 3 times")
            assert [topic for topic in cloud.arrived if topic != "sample"][-3:] == names(4, 1)

    run(main)


def test_what_was_spooled_has_a_lasting_id_and_what_is_left_of_its_expiry(tmp_path: Path) -> None:
    async def main() -> None:
        cloud = Broker(connected=False, acknowledges=False)
        async with core(tmp_path, cloud=cloud) as it:
            own = Properties(user=(("id", "the sender's"),))
            for n, properties in enumerate((Properties(expiry_s=3600), own, Properties(expiry_s=0))):
                out = Outbound(f"t/{n}", b"", properties=properties)
                it.outbox.send("cloud", "result", out, partial(it._is_safe, f"t/{n}"))
            await it.all_safe(3)
            cloud.come_back()
            it.outbox.link_up("cloud")
            await cloud.has(2)
            first, second = (out.properties for out in cloud.outs)
            assert 3590 < (first.expiry_s or 0) <= 3600
            assert second.user == (("id", "the sender's"),)
            assert it.spool.expired == {"result": 1}
            cloud.lose()  # nobody knows whether they arrived
        again = Broker()
        async with core(tmp_path, cloud=again) as it:
            it.outbox.link_up("cloud")
            await it.empty()
            assert [out.properties.user for out in again.outs] == [first.user, second.user]

    run(main)
