"""What goes out on a link: at once where it can, through the spool where it must, never twice and in order.

A result goes straight to a link that is up and has no result waiting. Everything else at QoS 1 is committed to the
spool first: results for a link that is down, and reports and captures always, since nobody would send those again.
Ahead of the first of these results the spool keeps those that went straight and have no PUBACK yet: after a crash they
would be made anew, and come after it.
Records of a kind go out in the order of their commits, kinds side by side by their weights, a window at a time, and
leave the spool at their PUBACK. What is in flight when a connection is lost is the link's to send again; the outbox
only waits. After a crash of the agent those may go out twice, with the same user property ``id``.

What a broker refuses for good becomes a dead letter; what it refuses for now is tried again, alone and more and more
rarely, until that has been often enough.

Belongs to the event loop's thread; nothing here blocks.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from agent.cloud.forwarder import Forwarder, LinkPort
from agent.cloud.spool import Spool
from agent.errors import RejectedError, TransientError
from agent.messages import Outbound
from agent.settings import SpoolLimits

log = logging.getLogger(__name__)

STRAIGHT_MOST = 1000  # results that a link may hold in memory; the next ones wait on the disk


class Outbox:
    """The way out for all links.

    Args:
        spool: open, and this outbox's alone to forward from.
        links: by name.
        limits: the weights of the kinds, and how often what is refused is tried.

    Attributes:
        dropped: QoS 0 messages for a link that was down, by link.
        refused: messages that a link will never take (too large for its broker, say), by link.
    """

    def __init__(
        self,
        spool: Spool,
        links: Mapping[str, LinkPort],
        limits: SpoolLimits = SpoolLimits(),  # noqa: B008 -- frozen
    ) -> None:
        self._spool = spool
        self._links = links
        self._forwarders = {
            name: Forwarder(name, port, spool, limits, self._count_refused) for name, port in links.items()
        }
        self.dropped: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        spool.on_commit = self._pump

    def send(self, link: str, kind: str, out: Outbound, done: Callable[[], None], value: float = 0.0) -> None:
        """Sends `out`; `done` runs once when it is in the next broker's hands, committed to the spool, or given up.

        Never raises for want of a link. Given up (and counted) are QoS 0 messages while the link is down, and what the
        spool has no room for. What the link's broker turns out never to take becomes a dead letter.

        Args:
            value: how much a capture is worth, from 0 to 1; see `Spool.append`.

        Raises:
            RejectedError: the link's broker can never take it (too large, say); `done` does not run.
        """
        port = self._links[link]
        if port.connected and (
            not out.qos
            or (
                kind == "result"
                and not self._spool.backlogs.get((link, kind))
                and len(port.outstanding) < STRAIGHT_MOST
            )
        ):
            try:
                port.publish(out, done, partial(self._came_back, link, kind, out, done))
                return
            except TransientError:
                pass  # the spool has room
            except RejectedError as error:
                self._count_refused(link, out, str(error))
                raise
        if out.qos:
            if kind == "result" and port.outstanding and not self._spool.backlogs.get((link, kind)):
                self._keep_what_went_straight(link)
            self._spool.append(link, kind, out, done, value=value)
        else:
            self.dropped[link] += 1
            done()

    def _keep_what_went_straight(self, link: str) -> None:
        """Has the spool keep what the link still has of it, ahead of what it gets from now on."""
        for packet_id, sent in self._links[link].outstanding.items():
            refused = sent.refused
            if isinstance(refused, partial) and refused.func == self._came_back:
                _, kind, out, done = refused.args
                if not self._forwarders[link].keep(packet_id, kind, out, done, self._came_back):
                    return

    def _came_back(
        self, link: str, kind: str, out: Outbound, done: Callable[[], None], why: str, for_now: bool
    ) -> None:
        """The broker refused what went straight: nothing is lost of it either."""
        if for_now:
            self._spool.append(link, kind, out, done)
        else:
            self._count_refused(link, out, why)
            self._spool.append(link, kind, out, done, dead=why)

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

    def _count_refused(self, link: str, out: Outbound, why: str) -> None:
        log.error("a message on %s cannot go to the %s link: %s", out.topic, link, why)
        self.refused[link] += 1
