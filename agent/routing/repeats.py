"""Requests that come again: what was asked already is answered from memory, or waits for the run under way. Pure.

Two messages are one request asked twice where they name an id (MQTT 5's correlation data, or the id in the payload) and
agree in all else that a requester says: link, topic, response-topic, content-type, user properties and payload. An id
alone proves nothing: two devices may both count from 1. Errors are not remembered: who asks again is served anew.

What is remembered is lost with the process; what the inbox and the brokers keep is run again then.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

from agent.messages import JSON, Inbound, Outbound
from agent.routing.answers import kind_of, read_envelope
from agent.routing.deliveries import Asked, Delivery
from agent.settings import AnswerLimits
from agent.values import dataclass

OVERHEAD_BYTES = 512  # an entry's own objects, about
MOST_COMPARED = 1 << 16  # bytes of a payload that is looked at for its id while it is under way


@dataclass(slots=True, eq=False)
class _Outcome:
    message: Inbound
    sent: list[tuple[str, Outbound]]
    size: int
    at: float


class Repeats:
    """The requests under way, and a bounded memory of those that had their outcome.

    Args:
        now: the loop's time.
        endpoint: whether a delivery is for model endpoints, in whose protocol an ``id`` at the top of the payload is
            the request's; elsewhere it may be a sensor's, and equal readings are two.

    Attributes:
        answered: how many were answered from memory or joined the run under way; its user counts.
    """

    def __init__(self, limits: AnswerLimits, now: Callable[[], float], endpoint: Callable[[Delivery], bool]) -> None:
        self._limits = limits
        self._now = now
        self._endpoint = endpoint
        self._under_way: dict[Asked, Delivery] = {}
        self._remembered: OrderedDict[Asked, _Outcome] = OrderedDict()
        self._outdated: set[Asked] = set()
        self._bytes = 0
        self.answered = 0

    def begin(self, delivery: Delivery) -> Delivery | list[tuple[str, Outbound]] | None:
        """Notes that a request is run, unless it was run already or is now.

        Returns:
            None where it is to be run; what went out for it when it came before, as (link, message); or the delivery of
            the same request that has no outcome yet.
        """
        message = delivery.message
        _, response_topic, correlation, _, _ = message.properties
        if correlation is not None:
            key: Asked = (message.link, message.topic, response_topic, correlation, None)
        elif len(message.payload) > MOST_COMPARED:
            return None
        else:
            key = (message.link, message.topic, response_topic, None, message.payload)
        if key in self._remembered and (sent := self._outcome(key, message)) is not None:
            return sent
        if key in self._under_way:
            return self._joined(key, delivery)
        if self._limits.max_count:
            self._under_way[key] = delivery
            delivery.asked = key
            delivery.sent = []
        return None

    def _outcome(self, key: Asked, message: Inbound) -> list[tuple[str, Outbound]] | None:
        """What went out for this request when it came before; None where that is another one's, or too old."""
        found = self._remembered[key]
        if not _same(found.message, message) or self._is_old(found):
            return None
        return found.sent

    def _joined(self, key: Asked, delivery: Delivery) -> Delivery | None:
        """The delivery of this request that has no outcome yet; None where that is another request's."""
        first = self._under_way[key]
        if not _same(first.message, delivery.message):
            return None
        if not _names_an_id(delivery.message, endpoint=self._endpoint(delivery)):
            return None
        return first

    def over(self, delivery: Delivery) -> None:
        """It has its outcome, which is remembered where it names an id and was no error."""
        key = delivery.asked
        if key is None or delivery.sent is None:
            return
        del self._under_way[key]
        if key in self._outdated:
            self._outdated.remove(key)
        elif delivery.named and not delivery.failed:
            self._remember(key, delivery.message, delivery.sent)

    def forget(self) -> None:
        """Another group serves from now on: nobody who asks now is answered by the one of before."""
        self._remembered.clear()
        self._bytes = 0
        self._outdated.update(self._under_way)

    def _remember(self, key: Asked, message: Inbound, sent: list[tuple[str, Outbound]]) -> None:
        size = len(message.payload) + sum(len(out.payload) for _, out in sent) + OVERHEAD_BYTES
        if size > self._limits.max_bytes // 4:
            return  # one large answer would drive out all others
        self._drop(key)
        self._remembered[key] = _Outcome(message, sent, size, self._now())
        self._bytes += size
        while len(self._remembered) > self._limits.max_count or self._bytes > self._limits.max_bytes:
            self._drop(next(iter(self._remembered)))
        while self._remembered and self._is_old(next(iter(self._remembered.values()))):
            self._drop(next(iter(self._remembered)))

    def _drop(self, key: Asked) -> None:
        gone = self._remembered.pop(key, None)
        if gone is not None:
            self._bytes -= gone.size

    def _is_old(self, outcome: _Outcome) -> bool:
        return self._now() - outcome.at > self._limits.keep_s


def message_id(delivery: Delivery, function: str, number: int) -> str:
    """What a result is called wherever it goes, also when its request is run again after a crash.

    Args:
        number: of this result among the function's for this request.
    """
    if not delivery.named:
        return f"{delivery.key}-{function}-{number}"
    message = delivery.message
    properties = message.properties
    told = (message.link, message.topic, properties._replace(expiry_s=None))
    digest = hashlib.blake2b(repr(told).encode(), digest_size=12)
    digest.update(message.payload)
    return f"{digest.hexdigest()}-{function}-{number}"


def _same(one: Inbound, other: Inbound) -> bool:
    """What the key does not hold already."""
    a, b = one.properties, other.properties
    return one.payload == other.payload and a.content_type == b.content_type and a.user == b.user


def _names_an_id(message: Inbound, *, endpoint: bool) -> bool:
    if message.properties.correlation is not None:
        return True
    named, _ = read_envelope(message.payload, kind_of(message.properties.content_type, JSON), endpoint=endpoint)
    return named is not None
