"""A device that keeps requests outstanding, and what became of each."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.mqtt_kit import PlainClient


@dataclass
class Load:
    """Sends requests at QoS 1 and keeps count of their answers.

    Args:
        event: the payload of request number n.
        window: how many requests may be without an answer at a time.
        ask_again_s: send a request again, with its id, when it has no answer for so long; None: never.
        rate: at most so many requests a second; None: as fast as answers come.
    """

    device: PlainClient
    topic: str
    event: Callable[[int], dict[str, Any]]
    window: int = 64
    ask_again_s: float | None = None
    rate: float | None = None
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    latency_s: dict[str, float] = field(default_factory=dict)
    sent: dict[str, float] = field(default_factory=dict)
    asked_again: int = 0

    def __post_init__(self) -> None:
        self._name = secrets.token_hex(4)
        self._reply_to = f"replies/{self._name}"
        self.count = 0
        self._changed = threading.Condition()
        self._open: dict[str, tuple[int, float]] = {}
        self._first: dict[str, float] = {}
        self.listen()
        self.device.subscribe(self._reply_to)

    def listen(self) -> Load:
        """Takes the device's messages: one load at a time does."""
        self.device.client.on_message = self._on_message
        return self

    def run(self, count: int, *, deadline_s: float = 300.0) -> None:
        """Sends `count` more requests and returns when all are answered; fails at the deadline."""
        end = time.monotonic() + deadline_s
        for n in range(self.count, self.count + count):
            with self._changed:
                while len(self._open) >= self.window:
                    self._wait(end)
            self._send(f"{self._name}-{n}", n)
            if self.rate:
                time.sleep(1 / self.rate)
        self.count += count
        with self._changed:
            while self._open:
                self._wait(end)

    def _wait(self, end: float) -> None:
        self._changed.wait(0.2)
        now = time.monotonic()
        assert now < end, f"{len(self._open)} requests without an answer: {sorted(self._open)[:5]}"
        if self.ask_again_s is not None:
            for name, (n, at) in list(self._open.items()):
                if now - at > self.ask_again_s and self.device.client.is_connected():
                    self.asked_again += 1
                    self._send(name, n)

    def _send(self, name: str, n: int) -> None:
        properties: Any = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = self._reply_to
        properties.CorrelationData = name.encode()
        now = time.monotonic()
        with self._changed:
            self._open[name] = (n, now)
            self._first.setdefault(name, now)
        self.device.client.publish(self.topic, json.dumps(self.event(n)), 1, properties=properties)

    def _on_message(self, _client: object, _userdata: object, message: paho.MQTTMessage) -> None:
        name = message.properties.CorrelationData.decode()  # type: ignore[union-attr]
        with self._changed:
            self.answers.setdefault(name, []).append(json.loads(message.payload))
            if self._open.pop(name, None):
                self.latency_s[name] = time.monotonic() - self._first[name]
            self._changed.notify_all()

    @property
    def open(self) -> int:
        """Requests without an answer."""
        return len(self._open)

    def p(self, quantile: float) -> float:
        """That quantile of the latencies, seconds."""
        ordered = sorted(self.latency_s.values())
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]

    def duplicates(self) -> int:
        """Requests with more than one answer."""
        return sum(len(each) > 1 for each in self.answers.values())
