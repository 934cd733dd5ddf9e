"""Smart watches that replay recordings over MQTT: QoS 1 requests with ids, asked again until they are answered.

They are outside devices that know a broker and two topics, nothing of the agent: ``sensors/WATCH/motion``, where they
ask, and ``watches/WATCH/answers``, which they name as ``meta.reply_to``.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
from numpy.typing import NDArray
from paho.mqtt.enums import CallbackAPIVersion

from agent.demo.tally import Tally
from agent.errors import TransientError

CONNECT_S = 15.0
MAX_WAITING = 240  # requests of all watches together: a second's load


class Watch:
    """One device with one connection, on a thread of paho's."""

    def __init__(self, name: str, port: int, bodies: list[str], tally: Tally) -> None:
        self.name = name
        self.answers = f"watches/{name}/answers"
        self._topic = f"sensors/{name}/motion"
        self._bodies = bodies
        self._tally = tally
        self._ready = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"demo-{name}", protocol=mqtt.MQTTv311)
        self._client.on_connect = lambda client, *_: client.subscribe(self.answers, qos=1)
        self._client.on_socket_open = _without_delay
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = lambda _, __, message: tally.answered(message.payload, time.monotonic())
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()

    def wait(self) -> None:
        """Returns when it hears its answers.

        Raises:
            TransientError: DEMO_NO_BROKER.
        """
        if not self._ready.wait(CONNECT_S):
            raise TransientError(
                "DEMO_NO_BROKER", f"{self.name} could not connect to the local broker in {CONNECT_S:g} s."
            )

    def ask(self, id: str, window: int) -> None:
        meta = json.dumps({"id": id, "reply_to": self.answers})
        self._client.publish(self._topic, f'{{"meta":{meta},"window":{self._bodies[window]}}}', qos=1)

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def _without_delay(client: mqtt.Client, userdata: object, sock: Any) -> None:
    """Sends small packets at once: else QoS 1 waits for the other end's delayed acknowledgements, 30 ms here."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Fleet:
    """Watches that together send `rate` windows a second, evenly spaced, from `start` to `finish`.

    They hold back while `MAX_WAITING` requests are without an answer, so that a machine with too much else to do gets
    slow instead of drowning in what is asked again.

    Args:
        windows: float64[windows, samples, channels]; each watch replays all of them, over and over.
    """

    def __init__(self, port: int, windows: NDArray[np.float64], tally: Tally, *, watches: int, rate: float) -> None:
        bodies = [json.dumps(window.tolist(), separators=(",", ":")) for window in windows]
        self._watches = {f"watch-{n}": Watch(f"watch-{n}", port, bodies, tally) for n in range(1, watches + 1)}
        self._windows = len(windows)
        self._tally = tally
        self._rate = rate
        self._quiet = False
        self._started_s = 0.0
        self.running_s = 0.0  # of the load, once it is finished
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watches", daemon=True)

    @property
    def names(self) -> list[str]:
        return list(self._watches)

    def start(self) -> None:
        """Returns when all watches are connected and the first requests are on their way."""
        for watch in self._watches.values():
            watch.wait()
        self._started_s = time.monotonic()
        self._thread.start()

    def finish(self) -> None:
        """No new requests from here on; the old ones are still asked again and answered."""
        self.running_s = time.monotonic() - self._started_s
        self._quiet = True

    def stop(self) -> None:
        """Disconnects. Idempotent."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for watch in self._watches.values():
            watch.stop()

    def _run(self) -> None:
        start, number = time.monotonic(), 0
        while not self._stop.wait(max(0.0, start + number / self._rate - time.monotonic())):
            if self._quiet:
                self._stop.wait(0.1)
            elif self._tally.waiting >= MAX_WAITING:
                began = time.monotonic()
                self._stop.wait(0.01)
                start += time.monotonic() - began  # no burst afterwards
            else:
                self._ask(number)
                number += 1
            for again, old in self._tally.overdue(time.monotonic()):
                self._watches[again.rpartition(".")[0]].ask(again, old)

    def _ask(self, number: int) -> None:
        turn, place = divmod(number, len(self._watches))
        watch = list(self._watches.values())[place]
        # Each watch begins elsewhere in the recordings, so that they do not all walk at once.
        window = (turn + place * self._windows // len(self._watches)) % self._windows
        id = f"{watch.name}.{turn:06d}"
        self._tally.sent(id, number, window, time.monotonic())
        watch.ask(id, window)
