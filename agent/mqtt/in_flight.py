"""What is under way on a link: messages sent and not yet acknowledged, and messages received and not yet acknowledged.

Pure: no clock, no I/O; packets go to the `write` they are given. `Departures` keeps to the broker's Receive Maximum,
sends again after a reconnect what had no PUBACK (with DUP, in the first order), and finds out a message at which the
broker closes the connection each time. `Arrivals` lets acknowledgements leave in the order of receipt (MQTT 5, 4.6).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from agent.errors import TransientError
from agent.messages import Outbound
from agent.mqtt.codec import DUP, PUBACK_HEAD

Done = Callable[[], None]
Refused = Callable[[str, bool], None]
Encode = Callable[[Outbound, int], bytes]
# AWS IoT Core takes 100 unacknowledged publishes from a connection; more gains nothing on a local broker either.
WINDOW = 100
# Packet ids are 16 bits, and subscriptions need some too.
MAX_OUTSTANDING = 60_000
# A broker that takes offence at a message (AWS: not authorized, too large) closes the connection without a word. After
# so many short connections that ended with the same message unanswered, messages go one by one; when it is so many and
# the message was alone in flight, it is given up.
SUSPECT_AFTER = 3
GIVE_UP_AFTER = 6


class Departure(NamedTuple):
    """A QoS 1 message on its way.

    Attributes:
        packet: encoded, in the version that the link speaks.
        refused: called in place of `done` where the broker refuses it, with why and whether it may take it later.
        sent: it was written to a connection, this one or an earlier one.
        losses: connections that the broker closed while this was the oldest message without PUBACK.
    """

    out: Outbound
    done: Done | None
    packet: bytes
    refused: Refused | None
    sent: bool
    losses: int


# What `Departure(..)` does, without a call in Python.
_departure: Callable[[tuple[Outbound, Done | None, bytes, Refused | None, bool, int]], Departure]
_departure = partial(tuple.__new__, Departure)


class Departures:
    """QoS 1 messages given to a link until their PUBACK.

    Attributes:
        messages: by packet id, oldest first; those in flight come before those waiting.
    """

    def __init__(self) -> None:
        self.messages: dict[int, Departure] = {}
        self._waiting: deque[int] = deque()
        self._last_id = 0
        self._limit = WINDOW
        self._one_by_one = 0
        self._write: Callable[[bytes], None] | None = None

    def __len__(self) -> int:
        return len(self.messages)

    def next_id(self) -> int:
        """A packet id that no message has; also for paho's SUBSCRIBE and UNSUBSCRIBE."""
        while True:
            self._last_id = self._last_id % 65535 + 1
            if self._last_id not in self.messages:
                return self._last_id

    def send(self, out: Outbound, done: Done | None, encode: Encode, refused: Refused | None = None) -> None:
        """Writes it now, or queues it behind the others where the window is full.

        Raises:
            RejectedError: from `encode`; nothing is sent then.
            TransientError: LINK_FULL.
        """
        messages = self.messages
        outstanding = len(messages)
        if outstanding >= MAX_OUTSTANDING:
            raise TransientError("LINK_FULL", f"{MAX_OUTSTANDING} messages wait for the broker's acknowledgement.")
        packet_id = self._last_id % 65535 + 1
        if packet_id in messages:
            packet_id = self.next_id()
        else:
            self._last_id = packet_id
        packet = encode(out, packet_id)
        if self._waiting or outstanding >= self._limit or self._one_by_one or self._write is None:
            messages[packet_id] = _departure((out, done, packet, refused, False, 0))
            self._waiting.append(packet_id)
            self._fill()
        else:
            messages[packet_id] = _departure((out, done, packet, refused, True, 0))
            self._write(packet)

    def divert(self, packet_id: int, done: Done, refused: Refused) -> None:
        """Changes what is called for a message."""
        self.messages[packet_id] = self.messages[packet_id]._replace(done=done, refused=refused)

    def connected(self, write: Callable[[bytes], None], limit: int, encode: Encode | None) -> None:
        """A new connection: sends again what is unacknowledged, in order.

        Args:
            limit: the broker's Receive Maximum, messages.
            encode: given where the protocol version changed, so that packets are made anew.
        """
        self._write = write
        self._limit = max(1, min(limit, WINDOW))
        if encode is not None:
            for packet_id, departure in self.messages.items():
                self.messages[packet_id] = departure._replace(packet=encode(departure.out, packet_id))
        self._waiting = deque(self.messages)
        self._fill()

    def disconnected(self, suspicious: bool) -> Departure | None:
        """The connection is gone.

        Args:
            suspicious: the broker closed it, soon after it began and without a reason that explains it.

        Returns:
            A message that is given up because the broker closes the connection at it; its `done` is the caller's.
        """
        self._write = None
        in_flight = len(self.messages) - len(self._waiting)
        if not suspicious or not in_flight:
            return None
        packet_id, oldest = next(iter(self.messages.items()))
        self.messages[packet_id] = oldest = oldest._replace(losses=oldest.losses + 1)
        if oldest.losses >= SUSPECT_AFTER:
            self._one_by_one = max(self._one_by_one, in_flight)
        if oldest.losses >= GIVE_UP_AFTER and in_flight == 1:
            return self.messages.pop(packet_id)
        return None

    def acknowledged(self, packet_id: int) -> Departure | None:
        """The message that this PUBACK answers, None if there is none; the next ones leave."""
        departure = self.messages.pop(packet_id, None)
        if departure is None:
            return None
        if self._one_by_one:
            self._one_by_one -= 1
        if self._waiting:
            self._fill()
        return departure

    def _window(self) -> int:
        return 1 if self._one_by_one else self._limit

    def _fill(self) -> None:
        while self._write is not None and self._waiting and len(self.messages) - len(self._waiting) < self._window():
            self._depart(self._waiting.popleft())

    def _depart(self, packet_id: int) -> None:
        assert self._write is not None
        departure = self.messages[packet_id]
        packet = departure.packet
        if departure.sent:
            packet = bytes((packet[0] | DUP,)) + packet[1:]
        self.messages[packet_id] = departure._replace(packet=packet, sent=True)
        self._write(packet)


class Arrivals:
    """QoS 1 messages received on one connection, until their PUBACK left.

    Attributes:
        order: their packet ids, oldest first; negative where acknowledged, behind one that is not.
    """

    __slots__ = ("_done", "_next", "_write", "order")

    def __init__(self) -> None:
        self.order: deque[int] = deque()
        self._next = 1  # ticket; those of `order` are the ones before it, in a row
        self._done: dict[int, object] = {}  # what the acknowledged ones in it were, by ticket
        self._write: Callable[[bytes, object], None]

    def __len__(self) -> int:
        return len(self.order)

    def connected(self, write: Callable[[bytes, object], None]) -> None:
        """A new connection, on which PUBACKs leave by `write`, called with each one and what it acknowledges."""
        self._write = write

    def add(self, packet_id: int) -> int:
        """A new ticket, above 0 and never given again, for the message with this packet id."""
        ticket = self._next
        self._next = ticket + 1
        self.order.append(packet_id)
        return ticket

    def ack(self, ticket: int, of: object = None) -> None:
        """Writes the PUBACKs that may leave now; none where an older message is still without its own.

        Idempotent; a ticket of an earlier connection changes nothing.

        Args:
            of: the message, for who asks what was not acknowledged when the connection was lost.
        """
        order = self.order
        older = ticket - self._next + len(order)
        if older > 0:
            order[older] = -abs(order[older])
            self._done[ticket] = of
        elif older == 0:
            self._write(PUBACK_HEAD + order.popleft().to_bytes(2, "big"), of)
            while order and order[0] < 0:
                ticket += 1
                self._write(PUBACK_HEAD + (-order.popleft()).to_bytes(2, "big"), self._done.pop(ticket))

    def forget(self) -> list[object]:
        """The connection is gone, and with it the meaning of its packet ids.

        Returns:
            what was acknowledged while something older was not.
        """
        self.order.clear()
        done, self._done = self._done, {}
        return list(done.values())
