"""What goes out on a link: at once where it can, through the spool where it must, never twice and in order.

A result goes straight to a link that is up and has no result waiting. Everything else at QoS 1 is committed to the
spool first: results for a link that is down, and reports and captures always, since nobody would send those again.
Records go out in the order of their commits, a window at a time, and leave the spool at their PUBACK. What is in flight
when a connection is lost is the link's to send again; the outbox only waits. After a crash of the agent those may go
out twice.

Belongs to the event loop's thread; nothing here blocks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Protocol

from agent.cloud.spool import Records, Spool
from agent.errors import RejectedError, TransientError
from agent.messages import Outbound

log = logging.getLogger(__name__)

WINDOW = 20  # records in flight on a link; what brokers take by default
READ_AHEAD = 100
FULL_RETRY_S = 0.1  # when the link takes no more for now


class LinkPort(Protocol):
    """What the outbox needs of a link; see `agent.mqtt.link.Link`."""

    @property
    def connected(self) -> bool:
        """Whether `publish` takes anything now."""

    def publish(self, out: Outbound, done: Callable[[], None] | None = None) -> None:
        """Publishes; `done` at the PUBACK, over reconnects too. TransientError: nothing was taken."""


class Outbox:
    """The way out for all links.

    Args:
        spool: open, and this outbox's alone to forward from.
        links: by name.

    Attributes:
        dropped: QoS 0 messages for a link that was down, by link.
        refused: messages that a link will never take (too large for its broker, say), by link.
    """

    def __init__(self, spool: Spool, links: Mapping[str, LinkPort]) -> None:
        self._spool = spool
        self._links = links
        self._forwarders = {name: _Forwarder(name, port, spool, self._refuse) for name, port in links.items()}
        self.dropped: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        spool.on_commit = self._pump

    def send(self, link: str, kind: str, out: Outbound, done: Callable[[], None], value: float = 0.0) -> None:
        """Sends `out`; `done` runs once when it is in the next broker's hands, committed to the spool, or given up.

        Never raises for want of a link. Given up (and counted) are QoS 0 messages while the link is down, and what the
        link's broker turns out never to take once it was spooled.

        Args:
            value: how much a capture is worth, from 0 to 1; see `Spool.append`.

        Raises:
            RejectedError: the link's broker can never take it (too large, say); `done` does not run.
        """
        if self._goes_straight(link, kind, out):
            try:
                self._links[link].publish(out, done)
                return
            except TransientError:
                pass  # the spool has room
            except RejectedError as error:
                self._refuse(link, out, error)
                raise
        if out.qos:
            self._spool.append(link, kind, out, done, value=value)
        else:
            self.dropped[link] += 1
            done()

    def _goes_straight(self, link: str, kind: str, out: Outbound) -> bool:
        if not self._links[link].connected:
            return False
        return not out.qos or (kind == "result" and not self._spool.backlog(link, "result"))

    def link_up(self, link: str) -> None:
        """Forwards what waits for a link that is up again."""
        self._forwarders[link].pump()

    def link_down(self, link: str) -> None:
        """Nothing to do: what is in flight is the link's to send again, and the rest waits."""

    async def stop(self, timeout_s: float = 1.0) -> None:
        """Hands over what waits for links that are up, then what is in flight, each for half of `timeout_s` at most.

        Call it before the links stop. What is left stays in the spool for the next run.
        """
        for each in self._forwarders.values():
            await each.drained(timeout_s / 2)
        for each in self._forwarders.values():
            await each.stop(timeout_s / 2)

    def _pump(self) -> None:
        for each in self._forwarders.values():
            each.pump()

    def _refuse(self, link: str, out: Outbound, error: RejectedError) -> None:
        log.error("a message on %s cannot go to the %s link: %s", out.topic, link, error)
        self.refused[link] += 1


class _Forwarder:
    """Carries one link's records from the spool to the link, in order."""

    def __init__(
        self, name: str, port: LinkPort, spool: Spool, refuse: Callable[[str, Outbound, RejectedError], None]
    ) -> None:
        self._name = name
        self._port = port
        self._spool = spool
        self._refuse = refuse
        self._after = 0
        self._waiting: deque[tuple[int, str, Outbound]] = deque()
        self._in_flight: set[int] = set()
        self._reading: asyncio.Task[None] | None = None
        self._read_again = False
        self._retry: asyncio.TimerHandle | None = None
        self._stopped = False
        self._progress = asyncio.Event()

    def pump(self) -> None:
        """Publishes what may go out now and asks for more where there is more. Idempotent."""
        while self._waiting and len(self._in_flight) < WINDOW and self._port.connected and not self._stopped:
            if not self._publish(*self._waiting.popleft()):
                return
        if self._waiting or self._stopped or not self._port.connected:
            return
        if self._reading is not None:
            self._read_again = True
        elif self._spool.backlog(self._name) > len(self._in_flight):
            self._read_again = False
            self._reading = asyncio.get_running_loop().create_task(self._read(), name=f"spool to {self._name}")

    def _publish(self, seq: int, kind: str, out: Outbound) -> bool:
        self._in_flight.add(seq)  # before: a link may call back before it returns
        try:
            self._port.publish(out, lambda: self._handed_over(seq))
        except TransientError:
            self._in_flight.discard(seq)
            self._waiting.appendleft((seq, kind, out))
            self._retry_later()
            return False
        except RejectedError as error:
            self._refuse(self._name, out, error)
            self._in_flight.discard(seq)
            self._spool.handed_over([seq])
        return True

    def _retry_later(self) -> None:
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(FULL_RETRY_S, self._retry_now)

    def _retry_now(self) -> None:
        self._retry = None
        self.pump()

    def _handed_over(self, seq: int) -> None:
        self._in_flight.discard(seq)
        self._spool.handed_over([seq])
        self._progress.set()
        self.pump()

    async def _read(self) -> None:
        records: Records = await self._spool.next_batch(self._name, self._after, READ_AHEAD)
        self._reading = None
        if records:
            self._after = records[-1][0]
            self._waiting.extend(records)
        if records or self._read_again:  # a commit may have come between the answer and now
            self.pump()

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
