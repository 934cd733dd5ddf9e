"""Carries one link's records from the spool to the link, each kind in order, a window at a time.

Used by the outbox alone, on the event loop's thread; nothing here blocks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from agent.cloud.lanes import Lane, choose
from agent.cloud.spool import KINDS, Record, Spool
from agent.errors import RejectedError, TransientError
from agent.messages import Outbound
from agent.settings import SpoolLimits

log = logging.getLogger(__name__)

WINDOW = 20  # records in flight on a link; what brokers take by default
READ_AHEAD = 100
FULL_RETRY_S = 0.1  # when the link takes no more for now
SAME_AS = "id"  # the user property by which a receiver knows what it has already

Refused = Callable[[str, bool], None]


class Sent(Protocol):
    """A message that a link has taken and that has no PUBACK; see `agent.mqtt.in_flight.Departure`."""

    @property
    def refused(self) -> Refused | None:
        """What is called where the broker refuses it."""


class LinkPort(Protocol):
    """What the outbox needs of a link; see `agent.mqtt.link.Link`."""

    @property
    def connected(self) -> bool:
        """Whether `publish` takes anything now."""

    @property
    def outstanding(self) -> Mapping[int, Sent]:
        """Messages taken and not yet acknowledged by the broker, oldest first."""

    def divert(self, packet_id: int, done: Callable[[], None], refused: Refused) -> None:
        """Changes what is called for one of them."""

    def publish(self, out: Outbound, done: Callable[[], None] | None = None, refused: Refused | None = None) -> None:
        """Publishes; `done` at the PUBACK, over reconnects too, or `refused` with why and whether it may be taken
        later. TransientError: nothing was taken."""


class Forwarder:
    """One link's."""

    def __init__(
        self,
        name: str,
        port: LinkPort,
        spool: Spool,
        limits: SpoolLimits,
        count_refused: Callable[[str, Outbound, str], None],
    ) -> None:
        self._name = name
        self._port = port
        self._spool = spool
        self._tries = limits.tries
        self._count_refused = count_refused
        self._lanes = {kind: Lane(kind, limits.of(kind)) for kind in KINDS}
        self._in_flight = 0
        self._reading: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._stopped = False
        self._progress = asyncio.Event()

    def pump(self) -> None:
        """Publishes what may go out now and asks for more where there is more. Idempotent."""
        if self._stopped:
            return
        now = asyncio.get_running_loop().time()
        while self._port.connected and self._in_flight < WINDOW:
            lane = choose(self._lanes.values(), now)
            if lane is None:
                break
            if not self._publish(lane, lane.take()):
                return
        if self._port.connected:
            for lane in self._lanes.values():
                self._read_more(lane)

    def _read_more(self, lane: Lane) -> None:
        if len(lane.waiting) > (0 if lane.newest_first else READ_AHEAD // 4):
            return
        if lane.reading:
            lane.read_again = True
        elif self._spool.backlog(self._name, lane.kind) > len(lane.in_flight) + len(lane.waiting):
            lane.reading, lane.read_again = True, False
            task = asyncio.get_running_loop().create_task(self._read(lane), name=f"spool to {self._name}")
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)

    async def _read(self, lane: Lane) -> None:
        ahead = WINDOW if lane.newest_first else READ_AHEAD
        records = await self._spool.next_batch(self._name, lane.kind, ahead)
        lane.reading = False
        lane.waiting.extend(records)
        if records or lane.read_again:  # a commit may have come between the answer and now
            self.pump()

    def _publish(self, lane: Lane, record: Record) -> bool:
        out = self._dressed(record)
        if out is None:
            self._spool.expire(record.seq)
            return True
        self._sent(lane, record)  # before: a link may call back before it returns
        try:
            self._port.publish(
                out,
                lambda: self._handed_over(lane, record),
                lambda why, for_now: self._refused(lane, record, why, for_now=for_now),
            )
        except TransientError:
            self._back(lane, record)
            lane.put_back(record)
            self._pump_later(FULL_RETRY_S)
            return False
        except RejectedError as error:
            self._back(lane, record)
            self._bury(record, str(error))
        return True

    def _dressed(self, record: Record) -> Outbound | None:
        """The message as it goes out now: with its id, and with what is left of its time. None: nothing is."""
        properties = record.out.properties
        if record.expires_at is not None:
            left_s = record.expires_at - self._spool.now()
            if left_s <= 0:
                return None
            properties = properties._replace(expiry_s=int(left_s) + 1)
        if all(name != SAME_AS for name, _ in properties.user):
            properties = properties._replace(user=(*properties.user, (SAME_AS, record.id)))
        return record.out._replace(properties=properties)

    def _sent(self, lane: Lane, record: Record) -> None:
        lane.in_flight.add(record.seq)
        self._in_flight += 1

    def _back(self, lane: Lane, record: Record) -> None:
        lane.in_flight.discard(record.seq)
        self._in_flight -= 1
        self._progress.set()

    def _handed_over(self, lane: Lane, record: Record) -> None:
        self._back(lane, record)
        lane.taken(record)
        self._spool.handed_over([record.seq])
        self.pump()

    def _refused(self, lane: Lane, record: Record, why: str, *, for_now: bool) -> None:
        self._back(lane, record)
        if for_now and lane.counts(record):
            self._spool.tried(record)
        if not for_now or record.tries >= self._tries:
            lane.taken(record)
            self._bury(record, why if not for_now else f"{why}, {record.tries} times")
            self.pump()
            return
        lane.put_back(record)
        pause_s = lane.pause(record, asyncio.get_running_loop().time())
        log.warning("the %s link's broker takes no %s now: %s; again in %g s", self._name, lane.kind, why, pause_s)
        self._pump_later(pause_s)

    def _bury(self, record: Record, why: str) -> None:
        self._count_refused(self._name, record.out, why)
        self._spool.bury(record.seq, why)

    def _pump_later(self, delay_s: float) -> None:
        """One timer, for the next that is due; those after it are found then."""
        loop = asyncio.get_running_loop()
        due = loop.time() + delay_s
        if self._retry is not None and self._retry.when() <= due:
            return
        if self._retry is not None:
            self._retry.cancel()
        self._retry = loop.call_later(delay_s, self._pump_now)

    def _pump_now(self) -> None:
        self._retry = None
        now = asyncio.get_running_loop().time()
        paused = [lane.paused_until - now for lane in self._lanes.values() if lane.paused_until > now]
        if paused:
            self._pump_later(min(paused))
        self.pump()

    def keep(
        self,
        packet_id: int,
        kind: str,
        out: Outbound,
        done: Callable[[], None],
        came_back: Callable[[str, str, Outbound, Callable[[], None], str, bool], None],
    ) -> bool:
        """Has the spool keep what the link is sending, until its PUBACK; whether it does.

        Args:
            packet_id: its, among the link's `outstanding`.
            done: runs at the PUBACK or at the commit, whichever is first.
            came_back: gets it where the broker refuses it.
        """
        safe = _once(done)
        seq = self._spool.keep_sent(self._name, kind, out, safe)
        if seq is None:
            return False
        lane = self._lanes[kind]
        lane.in_flight.add(seq)
        self._in_flight += 1

        def over() -> None:
            lane.in_flight.discard(seq)
            self._in_flight -= 1
            self._progress.set()
            self._spool.handed_over([seq])
            self.pump()

        def acknowledged() -> None:
            over()
            safe()

        def refused(why: str, for_now: bool) -> None:
            came_back(self._name, kind, out, safe, why, for_now)
            over()

        self._port.divert(packet_id, acknowledged, refused)
        return True

    async def drained(self, timeout_s: float) -> None:
        """Returns when nothing waits, when the link is down, or after `timeout_s`."""
        await self._until(lambda: not self._spool.backlog(self._name), timeout_s)

    async def stop(self, timeout_s: float) -> None:
        """Publishes nothing more, and waits for what is in flight while the link is up, `timeout_s` at most."""
        self._stopped = True
        if self._retry is not None:
            self._retry.cancel()
        await self._until(lambda: not self._in_flight, timeout_s)

    async def _until(self, over: Callable[[], bool], timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self._port.connected and not over() and (left := deadline - loop.time()) > 0:
            self._progress.clear()
            try:
                await asyncio.wait_for(self._progress.wait(), left)
            except asyncio.TimeoutError:
                return


def _once(call: Callable[[], None]) -> Callable[[], None]:
    """Calls `call` when it is first called itself."""
    waiting = [call]

    def first() -> None:
        if waiting:
            waiting.pop()()

    return first
