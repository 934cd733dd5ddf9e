"""The agent, the broker and the cloud ended at random, at 500 requests a second: what was acknowledged arrives.

The agent is killed (SIGKILL); the two mosquittos end by SIGTERM and keep what they hold on disk, as a broker that is
killed loses what it has acknowledged. scripts/soak does it 500 times.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.agent_kit import CORE, function, subscription
from tests.conftest import Site
from tests.mqtt_kit import PlainClient, wait_until
from tests.test_promises import figure

PER_S = 500
MOST_OPEN = 1000
SUBJECT = "work/press"


@dataclass
class Heard:
    """What the cloud has got: in which order requests first appear, and by which ids."""

    first: list[int] = field(default_factory=list)
    ids: dict[int, set[str]] = field(default_factory=dict)
    arrivals: int = 0
    errors: list[bytes] = field(default_factory=list)
    last: float = 0.0

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self.last

    def take(self, _client: object, _userdata: object, message: paho.MQTTMessage) -> None:
        self.last = time.monotonic()
        body = json.loads(message.payload)
        if "error" in body:
            self.errors.append(message.payload)
            return
        n = body["echo"]["n"]
        told = dict(message.properties.UserProperty)  # type: ignore[union-attr]
        self.arrivals += 1
        if n not in self.ids:
            self.first.append(n)
        self.ids.setdefault(n, set()).add(told["id"])


@dataclass
class Steady:
    """A device that says something new 500 times a second, whatever becomes of its broker.

    It waits while so much is without a result that the machine cannot keep up, and after its connection was lost, until
    all that it said before is acknowledged.
    """

    device: PlainClient
    heard: Heard
    said: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.acknowledged = 0
        self.device.client.on_publish = self._acknowledged  # paho keeps what is said without a connection, too
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        due, lost = time.monotonic(), False
        while not self.stop.is_set():
            lost |= not self.device.client.is_connected()
            if lost:
                # After a reconnect paho sends what is new before it sends again what is old (seen in the broker's log).
                lost = self.acknowledged < self.said
                due = time.monotonic() + 0.005
            elif self.said - len(self.heard.ids) > MOST_OPEN:
                due = time.monotonic() + 0.005
            while due < time.monotonic():
                self._say()
                due += 1 / PER_S
            time.sleep(0.005)

    def _say(self) -> None:
        properties: Any = Properties(PacketTypes.PUBLISH)
        properties.CorrelationData = str(self.said).encode()
        payload = json.dumps({"n": self.said})
        self.device.client.publish(SUBJECT, payload, 1, properties=properties)
        self.said += 1

    def _acknowledged(self, *_: object) -> None:
        self.acknowledged += 1

    def end(self) -> None:
        """Stops, and returns when the broker has acknowledged all."""
        self.stop.set()
        self._thread.join()
        wait_until(lambda: self.acknowledged >= self.said, "the PUBACK of each request", 60)


def test_what_was_acknowledged_arrives_whoever_is_killed(site: Site, soak: bool, record_property: Any) -> None:
    kills = 500 if soak else 20
    chance = random.Random(20261123)
    core = site.core()
    heard = Heard()
    struck = dict.fromkeys(("agent", "broker", "cloud"), 0)
    core.start()
    try:
        core.wait_linked()
        core.deploy(
            {
                "DeploymentId": "kills",
                "Functions": [function("echo")],
                "Subscriptions": [
                    subscription("local", SUBJECT, "function:echo"),
                    subscription("function:echo", "#", "cloud"),
                ],
            }
        )
        core.wait_ready("echo")
        with (
            site.device() as device,
            PlainClient(site.cloud.port, "the-cloud", session_expiry_s=3600) as cloud,
        ):
            cloud.client.on_message = heard.take
            cloud.subscribe(f"{SUBJECT}/echo")
            device.client.on_message = heard.take
            device.subscribe(f"marram/{CORE}/errors/#")
            steady = Steady(device, heard)
            try:
                for _ in range(kills):
                    time.sleep(chance.uniform(0.2, 1.2))
                    victim = chance.choice(sorted(struck))
                    struck[victim] += 1
                    if victim == "agent":
                        core.kill()
                        core.start()
                    else:
                        broker = site.local if victim == "broker" else site.cloud
                        broker.stop()
                        broker.start()
            finally:
                steady.end()
            wait_until(lambda: len(heard.ids) + len(heard.errors) >= steady.said or heard.silent_s > 30, "results", 120)
            missing = sorted(set(range(steady.said)) - set(heard.ids))
            codes = Counter(json.loads(each)["error"]["code"] for each in heard.errors)
            assert not missing, (
                f"{len(missing)} of {steady.said} never arrived: {missing[:20]}; errors {codes}; {core.status()}"
            )
            wait_until(lambda: core.status()["links"]["cloud"]["backlog"] == 0, "an empty spool", 30)
            found = core.status()
    finally:
        core.kill()
    assert not heard.errors
    assert found["spool"]["dropped"] == {}
    assert found["spool"]["dead"] == 0
    several = {n: ids for n, ids in heard.ids.items() if len(ids) != 1}
    assert not several, f"these came twice with other ids: {several}"
    late = [n for before, n in zip(heard.first, heard.first[1:], strict=False) if n < before]
    figure(
        record_property,
        kills=struck,
        requests=steady.said,
        lost=0,
        arrived_twice=heard.arrivals - len(heard.ids),
        out_of_order=len(late),
    )
    assert not late, f"{len(late)} results overtook others: {late[:10]}"


def test_what_the_cloud_had_not_acknowledged_is_not_overtaken(site: Site) -> None:
    """The cloud falls silent, later ends, and then the agent is killed: results come in the order of their requests."""
    core = site.core()
    heard = Heard()
    core.start()
    try:
        core.wait_linked()
        core.deploy(
            {
                "DeploymentId": "silent",
                "Functions": [function("echo")],
                "Subscriptions": [
                    subscription("local", SUBJECT, "function:echo"),
                    subscription("function:echo", "#", "cloud"),
                    subscription("function:echo", "#", "local"),
                ],
            }
        )
        core.wait_ready("echo")
        with site.device() as device, PlainClient(site.cloud.port, "the-cloud") as cloud:
            device.subscribe(f"{SUBJECT}/echo")
            cloud.client.on_message = heard.take
            cloud.subscribe(f"{SUBJECT}/echo")
            site.cloud.pause()
            for n in range(10):
                device.publish(SUBJECT, json.dumps({"n": n}), correlation=str(n).encode())
            device.wait_for(10)  # so the same results are on their way to the cloud
            site.cloud.kill()
            wait_until(lambda: not core.status()["links"]["cloud"]["connected"], "the link's end")
            for n in range(10, 20):
                device.publish(SUBJECT, json.dumps({"n": n}), correlation=str(n).encode())
            device.wait_for(20)
            wait_until(lambda: core.status()["links"]["cloud"]["backlog"] >= 10, "results in the spool")
            core.kill()
            wait_until(lambda: not cloud.client.is_connected(), "the cloud's own end")
            site.cloud.start()
            cloud.wait_up()
            cloud.subscribe(f"{SUBJECT}/echo")
            core.start()
            wait_until(lambda: len(heard.ids) == 20, "all results")
    finally:
        core.kill()
    assert heard.first == list(range(20))
    assert not heard.errors
