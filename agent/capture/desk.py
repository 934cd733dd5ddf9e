"""Capture as a part of the agent: joins the keeper to the clock, the disk, the spool and the uploads.

Runs on the event loop's thread. Files are written by threads; nothing on the way of a request waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from agent.capture import memory
from agent.capture.budget import Budget
from agent.capture.keeper import Keeper, encoding_of
from agent.capture.policy import Capture
from agent.capture.samples import Sample
from agent.capture.settled import Hold, Settled
from agent.capture.uploads import Uploads
from agent.deployment.threads import in_thread
from agent.errors import RejectedError
from agent.messages import Outbound
from agent.settings import Settings

log = logging.getLogger(__name__)

OVERHEAD_BYTES: Final = 1024  # of a PUBLISH beside its payload: the topic and our properties
Send = Callable[[Outbound, float, Callable[[], None]], None]


class CaptureDesk:
    """Keeps samples of requests.

    Args:
        send: (message, value, done) on its way to the cloud, through the spool.
        max_packet_bytes: the largest packet that the samples' broker takes now.
        timestamp: of now, as samples say it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        loop: asyncio.AbstractEventLoop,
        send: Send,
        max_packet_bytes: Callable[[], int],
        timestamp: Callable[[], str],
    ) -> None:
        self._state = settings.state
        self._limits = settings.capture
        self._loop = loop
        self._max_packet_bytes = max_packet_bytes
        self._writing: asyncio.Task[None] | None = None
        self._closed = False
        # The keeper's ports.
        self.now = loop.time
        self.clock = time.time
        self.random = random.random
        self.send = send
        self.timestamp = timestamp
        self.keeper = Keeper(
            settings.topics.capture,
            encoding_of(self._limits.encoding),
            Budget(self._limits.bytes_per_day),
            self,
        )
        self._uploads = self._make_uploads(settings)

    def _make_uploads(self, settings: Settings) -> Uploads | None:
        place = settings.capture.s3
        if place is None:
            return None
        return Uploads(
            settings.state / "uploads",
            place,
            settings.core,
            settings.capture.disk_bytes,
            publish=self._publish,
            dropped=lambda function: self.keeper.drop(function, "disk"),
            role=settings.aws,
        )

    async def open(self) -> None:
        """Goes on from what the disk remembers."""
        found = await in_thread(memory.read, self._state)
        budget = self.keeper.budget
        budget.restore(found.get("budget") or {}, self.clock())
        budget.turn(self.clock())
        self.keeper.restore(found.get("drift") or {})
        wanted = budget.wanted() if budget.spent else None
        if wanted is not None:
            await self._write(budget.day, wanted)
        if self._uploads is not None:
            await self._uploads.open()

    async def close(self) -> None:
        """Writes down what was spent to the byte."""
        self._closed = True
        if self._uploads is not None:
            await self._uploads.close()
        if self._writing is not None:
            await asyncio.wait({self._writing})
        if self.keeper.tallies or self.keeper.budget.spent:
            await in_thread(memory.write, self._state, self._values(self.keeper.budget.spent))

    def use(self, policies: Mapping[str, tuple[Capture, str | None]]) -> None:
        """Puts these policies, by function with the version of its model, into force."""
        self.keeper.use(policies)

    def consider(self, settled: Settled, hold: Hold) -> None:
        """Keeps a sample of a request, or does not; see `Keeper.consider`."""
        self.keeper.consider(settled, hold)
        if self._writing is None and not self._closed:
            self._remember()

    def told(self) -> dict[str, Any]:
        """The counts, for `marram status`."""
        self.keeper.budget.turn(self.clock())
        uploads = {"uploads": self._uploads.told()} if self._uploads is not None else {}
        return {**self.keeper.told(), **uploads}

    def link_up(self) -> None:
        """The cloud's link is up: so is the network, most likely."""
        if self._uploads is not None:
            self._uploads.hurry()

    # -- the keeper's ports -------------------------------------------------------------------------------------------

    def most_bytes(self) -> int:
        broker = self._max_packet_bytes() - OVERHEAD_BYTES
        return broker if self._limits.max_bytes is None else min(self._limits.max_bytes, broker)

    def spill(self, sample: Sample, done: Callable[[], None]) -> str | None:
        if self._uploads is None:
            return "too_large"
        return None if self._uploads.put(sample, self.most_bytes(), done) else "disk"

    def _publish(self, sample: Sample, done: Callable[[], None]) -> None:
        """Sends a sample whose payloads are in S3."""
        try:
            self.send(self.keeper.message(sample), sample.value, done)
        except RejectedError:  # logged and counted by the outbox
            self.keeper.drop(sample.origin.function, "refused")
            done()

    # -- memory -------------------------------------------------------------------------------------------------------

    def _remember(self) -> None:
        """Writes what must be on the disk before more is spent, or a reference that has just become whole."""
        wanted = self.keeper.budget.wanted()
        if wanted is None and not self.keeper.has_news:
            return
        self.keeper.has_news = False
        leased = self.keeper.budget.spent if wanted is None else wanted
        self._writing = self._loop.create_task(self._write(self.keeper.budget.day, leased))

    async def _write(self, day: int, leased: int) -> None:
        if await in_thread(memory.write, self._state, self._values(leased)):
            self.keeper.budget.grant(day, leased)
        self._writing = None

    def _values(self, spent: int) -> dict[str, Any]:
        return {"budget": self.keeper.budget.snapshot(spent), "drift": self.keeper.references()}
