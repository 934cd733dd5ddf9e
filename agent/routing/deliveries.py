"""When a received message is acknowledged. Pure; the links and the spool are ports.

A QoS 1 message is acknowledged when all that came of it is safe: in the next broker's hands or committed to the
spool. So that one slow function holds up nobody (acknowledgements leave in the order of receipt: MQTT 5, 4.6), a
message that has waited HELD_S (or YOUNG_S, when half the window is used) or whose function is not ready is
itself committed to the spool's inbox and acknowledged; it is run again from there after a restart. Not where the disk
does not keep up, and later where the function's queue is half full: such messages wait with their broker.

After a connection's loss the broker sends again what it saw no acknowledgement of. Such a redelivery joins the
delivery that is still here; one that was acknowledged already is joined only by a message that the broker marks as a
duplicate, since another one may truly be new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from agent.errors import AgentError
from agent.messages import Inbound, Outbound

HELD_S = 0.05
CROWDED_S = 1.0  # held instead where its function's queue is half full: a burst waits with the broker, unrefused
SURPLUS_WINDOWS = 100
YOUNG_S = 0.02  # what a busy but fast function answers is out by then: committing it would be work for nothing

# What makes two messages one request: link, topic, response-topic, and correlation data or payload.
Asked = tuple[str, str, str | None, bytes | None, bytes | None]


class Delivery:
    """One received message and what is still to come of it.

    Attributes:
        key: unique here and over restarts; also the request's id where the message names none.
        open: outcomes that are not safe yet; at 0 the delivery is over.
        respond: takes the answer in place of a link: a request over the control socket, or of another function.
        tell_failure: takes the error of such a request, where it is to be told from an answer.
        hops: how many functions it had gone through before.
        client_context: what the function that invokes another sends with its payload; see `Request`.
        named: the request names its id.
        surplus: its broker has sent more than it was allowed to, and too little to refuse it.
        failed: somebody was told of an error.
        asked: what another message has to have in common with it to be the same request; None: not looked at.
        sent: what went out for it on its own link, as (link, message); None: nobody wants to know.
        followers: deliveries of the same request, asked again meanwhile; they are over when this one is.
        numbers: how many results each function has given, for their ids.
    """

    # Most deliveries never set these, and so need not when they are made.
    inboxed = False
    stale = False
    surplus = False
    failed = False
    respond: Callable[[str, bytes], None] | None = None
    asked: Asked | None = None
    sent: list[tuple[str, Outbound]] | None = None
    followers: list[Delivery] | None = None
    numbers: dict[str, int] | None = None
    tell_failure: Callable[[AgentError], None] | None = None
    hops = 0
    client_context: str | None = None

    def __init__(self, key: str, message: Inbound, targets: tuple[str, ...] = ()) -> None:
        self.key = key
        self.message = message
        self.targets = targets
        self.open = 1  # held by the one who opened it until all its targets are on their way
        self.acked = message.ticket == 0
        self.named = message.properties.correlation is not None


class Ports(Protocol):
    def ack_on(self, link: str) -> Callable[[int, Delivery], None]: ...
    def window(self, link: str) -> int: ...
    def put_inbox(self, delivery: Delivery, committed: Callable[[], None]) -> None: ...
    def drop_inbox(self, key: str) -> None: ...
    def later(self, delay_s: float, run: Callable[[], None]) -> object: ...
    def now(self) -> float: ...
    def keeps_up(self) -> bool: ...
    def crowded(self, delivery: Delivery) -> bool: ...


class _Line:
    """What of one link's connection is not acknowledged.

    Attributes:
        ack: takes a message's ticket, and the delivery, for `Deliveries.link_down`.
        window: how many unacknowledged messages its broker sends.
        unacked: the deliveries, by key.
        fresh: of these what is not in the inbox either.
    """

    __slots__ = ("ack", "fresh", "unacked", "window")

    def __init__(self, ack: Callable[[int, Delivery], None], window: int) -> None:
        self.ack = ack
        self.window = window
        self.unacked: dict[str, Delivery] = {}
        self.fresh: dict[str, Delivery] = {}


class Deliveries:
    """All deliveries that are not over, by link.

    Attributes:
        on_over: called with each delivery whose outcomes are all safe.
        stale: what a redelivery may join, by link and by what makes two messages one; empty where nothing is.
    """

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self.on_over: Callable[[Delivery], None] | None = None
        self._lines: dict[str, _Line] = {}  # by link
        self._running: dict[str, Delivery] = {}
        self.stale: dict[str, dict[object, list[Delivery]]] = {}
        self._timer_set = False

    def __len__(self) -> int:
        return len(self._running)

    def join(self, message: Inbound) -> bool:
        """Whether `message` is the redelivery of what is here already; it then needs nothing more."""
        stale = self.stale.get(message.link)
        if not stale or not message.ticket:
            return False
        found = stale.get(_sameness(message), [])
        match = next((d for d in found if message.dup or not d.acked), None)
        if match is None:
            return False
        self._unstale(match)
        match.message.ticket = message.ticket
        line = self._line(message.link)
        if match.acked or match.open == 0:
            match.acked = True
            line.ack(message.ticket, match)
        else:
            line.unacked[match.key] = match
            if not match.inboxed:
                line.fresh[match.key] = match
        return True

    def begin(self, delivery: Delivery, *, ready: bool) -> None:
        """Takes charge of its acknowledgement. `ready`: all of its functions can run it now."""
        self._running[delivery.key] = delivery
        if delivery.acked:
            return
        link, key = delivery.message.link, delivery.key
        line = self._lines.get(link) or self._line(link)
        line.unacked[key] = line.fresh[key] = delivery
        if not ready or 2 * len(line.unacked) > line.window:
            self._keep_moving(line, delivery, ready=ready)
        if not self._timer_set:
            self._timer_set = True
            self._ports.later(HELD_S, self._commit_old)

    def _keep_moving(self, line: _Line, delivery: Delivery, *, ready: bool) -> None:
        """Sees to it that what comes next is sent, too: the window is half used, or a function takes its time."""
        if ready:
            self._commit_first(line.fresh)
        else:
            self._commit_up_to(delivery, line.fresh)
        if len(line.unacked) > line.window:
            # mosquitto 2.0.11 sends more than it may after a reconnect. Such messages are in memory in any case; up to
            # some thousands they had better wait there than be refused.
            delivery.surplus = len(line.unacked) <= SURPLUS_WINDOWS * line.window

    def _line(self, link: str) -> _Line:
        """That of the link's connection, which is asked for its window once."""
        line = self._lines.get(link)
        if line is None:
            line = self._lines[link] = _Line(self._ports.ack_on(link), self._ports.window(link))
        return line

    def restore(self, delivery: Delivery) -> None:
        """Takes up a delivery that the inbox kept over a restart; a redelivery of it may still come."""
        delivery.inboxed = delivery.acked = True
        self._running[delivery.key] = delivery
        self._make_stale(delivery)

    def release(self, delivery: Delivery) -> None:
        """One of its outcomes is safe."""
        delivery.open -= 1
        if delivery.open:
            return
        self._running.pop(delivery.key, None)
        if delivery.inboxed:
            self._ports.drop_inbox(delivery.key)
        if not delivery.acked:
            if not delivery.stale:
                self._ack(delivery)
        elif delivery.stale:
            self._unstale(delivery)
        if self.on_over is not None:
            self.on_over(delivery)
        if delivery.followers:
            for follower in delivery.followers:
                self.release(follower)

    def link_down(self, link: str, not_acknowledged: Iterable[Delivery] = ()) -> None:
        """The link's connection is gone, and with it all its acknowledgements.

        Args:
            not_acknowledged: those given to the link whose PUBACK it has not sent.
        """
        self._lines.pop(link, None)
        self._forget_settled(link)
        for delivery in not_acknowledged:
            self._make_stale(delivery)
        for delivery in self._running.values():
            if delivery.message.link == link and delivery.message.ticket and not delivery.stale:
                self._make_stale(delivery)

    def _forget_settled(self, link: str) -> None:
        """A whole connection went by without their redelivery: the broker does not redeliver."""
        for delivery in [d for same in self.stale.get(link, {}).values() for d in same if d.open == 0]:
            self._unstale(delivery)

    def session_lost(self, link: str) -> None:
        """The broker kept no session: nothing will be redelivered, so what is here is all there is."""
        for delivery in [d for same in self.stale.pop(link, {}).values() for d in same]:
            delivery.stale = False
            delivery.acked = True

    def _ack(self, delivery: Delivery) -> None:
        delivery.acked = True
        message, key = delivery.message, delivery.key
        line = self._lines.get(message.link) or self._line(message.link)
        line.unacked.pop(key, None)
        line.fresh.pop(key, None)
        line.ack(message.ticket, delivery)

    def _commit(self, delivery: Delivery) -> None:
        if delivery.inboxed or not self._ports.keeps_up():
            return  # a disk that does not keep up: the message stays with its broker, which sends no more than a window
        held_s = self._ports.now() - delivery.message.received_s
        if held_s < CROWDED_S and self._ports.crowded(delivery):
            return
        delivery.inboxed = True
        self._line(delivery.message.link).fresh.pop(delivery.key, None)
        self._ports.put_inbox(delivery, lambda: self._committed(delivery))

    def _committed(self, delivery: Delivery) -> None:
        if not delivery.acked and not delivery.stale:
            self._ack(delivery)

    def _commit_up_to(self, delivery: Delivery, fresh: dict[str, Delivery]) -> None:
        """With those before it that go to the same functions (a worker was lost that had them): the next run runs what
        is in the inbox before what the broker sends again."""
        targets = frozenset(delivery.targets)
        for older in list(fresh.values()):
            if older is delivery or not targets.isdisjoint(older.targets):
                self._commit(older)
                if not older.inboxed:
                    break

    def _commit_first(self, fresh: dict[str, Delivery]) -> None:
        """Those that all others wait for, but for what is just being answered."""
        before = self._ports.now() - YOUNG_S
        while fresh:
            first = next(iter(fresh.values()))
            if first.message.received_s > before:
                break
            self._commit(first)
            if not first.inboxed:
                break

    def _commit_old(self) -> None:
        self._timer_set = False
        now, nearest = self._ports.now(), None
        for line in self._lines.values():
            for delivery in list(line.fresh.values()):
                left = delivery.message.received_s + HELD_S - now
                if left > 0.001:
                    nearest = left if nearest is None else min(nearest, left)
                    break
                self._commit(delivery)
                if not delivery.inboxed:
                    nearest = HELD_S
                    break
        if nearest is not None:
            self._timer_set = True
            self._ports.later(nearest, self._commit_old)

    def _make_stale(self, delivery: Delivery) -> None:
        delivery.stale = True
        stale = self.stale.setdefault(delivery.message.link, {})
        stale.setdefault(_sameness(delivery.message), []).append(delivery)

    def _unstale(self, delivery: Delivery) -> None:
        delivery.stale = False
        stale = self.stale.get(delivery.message.link, {})
        same = stale.get(_sameness(delivery.message), [])
        if delivery in same:
            same.remove(delivery)
        if not same:
            stale.pop(_sameness(delivery.message), None)
        if not stale:
            self.stale.pop(delivery.message.link, None)


def _sameness(message: Inbound) -> object:
    """All that a requester says, but for the expiry, which the broker counts down."""
    properties = message.properties
    said = (properties.content_type, properties.response_topic, properties.correlation, properties.user)
    return (message.topic, message.payload, said)
