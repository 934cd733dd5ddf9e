"""A real mosquitto on a free loopback port, and a plain paho client: what the MQTT tests talk to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties

DEADLINE_S = 20.0


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on now.

    Below the range that the kernel takes the ports of outgoing connections from (32768 and up): one of those could take
    it before the server that it is for has started, most of all where tests run side by side.
    """
    while True:
        port = 15000 + secrets.randbelow(17000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], object], what: str = "the condition", deadline_s: float = DEADLINE_S) -> None:
    """Blocks until `condition()` is true; fails the test after `deadline_s`. Not for a loop's thread."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come true within {deadline_s} s")
        time.sleep(0.005)


def accepts(port: int) -> bool:
    """Whether something accepts TCP connections at 127.0.0.1:port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Mosquitto:
    """One mosquitto process; it keeps its port, configuration and data over restarts.

    Args:
        directory: where the configuration, the log and the persistence file go.
        port: the port to listen on; a free one by default.
        persistence: keep sessions and queued messages on disk (written at SIGTERM).
        options: more lines of mosquitto.conf, before the listener (``max_inflight_messages 3``).
        listener: more lines for the listener (``cafile ..``).
        anonymous: whether clients without a name are let in.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        persistence: bool = False,
        options: tuple[str, ...] = (),
        listener: tuple[str, ...] = (),
        anonymous: bool = True,
    ) -> None:
        self.port = port or free_port()
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / "mosquitto.log"
        lines = ["set_tcp_nodelay true", "max_queued_messages 100000", "log_type all", "connection_messages true"]
        if os.getuid() == 0:
            lines.append("user root")
        if persistence:
            lines += ["persistence true", f"persistence_location {directory}/"]
        lines += [*options, f"listener {self.port} 127.0.0.1", *listener]
        lines.append(f"allow_anonymous {'true' if anonymous else 'false'}")
        self.config = directory / "mosquitto.conf"
        self.config.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @property
    def url(self) -> str:
        """``mqtt://127.0.0.1:PORT``."""
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> Mosquitto:
        """Starts it and returns when it accepts connections."""
        binary = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
        assert binary, "these tests need mosquitto: apt-get install mosquitto"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([binary, "-c", str(self.config)], stdout=log, stderr=log)
        wait_until(lambda: accepts(self.port) or self._ended(), f"mosquitto on port {self.port}")
        assert not self._ended(), self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
        return self

    def stop(self) -> None:
        """Ends it by SIGTERM (what is persistent is written) and waits; nothing to do if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it by SIGKILL (what was not written is gone) and waits."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def logged(self, text: str) -> int:
        """How many lines of its log hold `text`."""
        return sum(text in line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines())

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(how)
            if how is signal.SIGTERM:
                self.process.send_signal(signal.SIGCONT)
        self.process.wait(DEADLINE_S)
        self.process = None

    def __enter__(self) -> Mosquitto:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


class PlainClient:
    """A device as anyone would write it: paho with its own thread; it comes back and subscribes again by itself.

    Attributes:
        received: paho's messages in the order of arrival; acknowledged at once.
    """

    def __init__(
        self,
        port: int,
        client_id: str,
        *,
        protocol: int = paho.MQTTv5,
        username: str | None = None,
        password: str | None = None,
        session_expiry_s: int = 0,
    ) -> None:
        self.received: list[paho.MQTTMessage] = []
        self._arrived = threading.Condition()
        self._settled: set[int] = set()
        self._subscribed: dict[str, int] = {}
        if protocol == paho.MQTTv5:
            self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=protocol)  # type: ignore[arg-type]
        else:
            self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id, clean_session=True, protocol=protocol)  # type: ignore[arg-type]
        self._up = threading.Event()
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_message = self._on_message
        self.client.on_subscribe = self._on_subscribe
        self.client.on_socket_open = self._on_socket_open
        self.client.reconnect_delay_set(1, 1)
        if username is not None:
            self.client.username_pw_set(username, password)
        if session_expiry_s:  # MQTT 5: the broker keeps what comes while it is away
            properties = PahoProperties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = session_expiry_s
            self.client.connect("127.0.0.1", port, clean_start=False, properties=properties)
        else:
            self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        self.wait_up()

    def subscribe(self, topic: str, qos: int = 1) -> None:
        """Subscribes and returns at the SUBACK."""
        self.wait_up()
        self._subscribed[topic] = qos
        _, mid = self.client.subscribe(topic, qos)
        assert mid is not None
        with self._arrived:
            assert self._arrived.wait_for(lambda: mid in self._settled, DEADLINE_S), f"no SUBACK for {topic}"

    def publish(
        self,
        topic: str,
        payload: bytes | str = b"",
        qos: int = 1,
        retain: bool = False,
        *,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        content_type: str | None = None,
        user: list[tuple[str, str]] | None = None,
        wait: bool = True,
    ) -> None:
        """Publishes, when it is connected; returns at the PUBACK unless `wait` is false."""
        self.wait_up()
        properties = PahoProperties(PacketTypes.PUBLISH)
        if response_topic is not None:
            properties.ResponseTopic = response_topic
        if correlation is not None:
            properties.CorrelationData = correlation
        if content_type is not None:
            properties.ContentType = content_type
        if user:
            properties.UserProperty = user
        v5 = self.client.protocol == paho.MQTTv5
        info = self.client.publish(topic, payload, qos, retain, properties=properties if v5 else None)
        if wait:
            info.wait_for_publish(DEADLINE_S)
            assert info.is_published(), f"no PUBACK for {topic}"

    def wait_for(self, count: int, deadline_s: float = DEADLINE_S) -> list[paho.MQTTMessage]:
        """All messages so far, once there are at least `count`."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.received) >= count, deadline_s), (
                f"{len(self.received)} of {count} messages arrived"
            )
            return list(self.received)

    def wait_up(self) -> None:
        """Returns when it is connected."""
        assert self._up.wait(DEADLINE_S), "the plain client is not connected"

    def payloads(self) -> list[bytes]:
        """The payloads so far."""
        return [bytes(message.payload) for message in list(self.received)]

    def close(self) -> None:
        """Disconnects and ends its thread."""
        self.client.disconnect()
        self.client.loop_stop()

    def _on_connect(self, *_: object) -> None:
        for topic, qos in self._subscribed.items():
            self.client.subscribe(topic, qos)
        self._up.set()

    def _on_disconnect(self, *_: object) -> None:
        self._up.clear()

    def _on_message(self, _client: object, _userdata: object, message: paho.MQTTMessage) -> None:
        with self._arrived:
            self.received.append(message)
            self._arrived.notify_all()

    def _on_subscribe(self, _client: object, _userdata: object, mid: int, *_: object) -> None:
        with self._arrived:
            self._settled.add(mid)
            self._arrived.notify_all()

    def _on_socket_open(self, _client: object, _userdata: object, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> PlainClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def mosquitto(directory: Path, **options: object) -> Iterator[Mosquitto]:
    """A running mosquitto, killed at the end of the block. Options: those of `Mosquitto`."""
    broker = Mosquitto(directory, **options)  # type: ignore[arg-type]
    try:
        yield broker.start()
    finally:
        broker.kill()


async def until(condition: Callable[[], object], what: str = "the condition", deadline_s: float = DEADLINE_S) -> None:
    """`wait_until` for the event loop."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"{what} did not come true within {deadline_s} s"
        await asyncio.sleep(0.005)


class Relay:
    """A TCP relay on the event loop, in front of a broker: it can be cut, closed and made to look at what goes to it.

    Attributes:
        port: where it listens; the same after `cut` and `mend`.
        refuse: asked with the first bytes of a connection (its CONNECT); bytes are sent back instead of relaying (an
            empty answer closes the connection at once), None relays.
        inspect: asked with each chunk towards the broker; false closes the connection.
    """

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.refuse: Callable[[bytes], bytes | None] = lambda first: None
        self.inspect: Callable[[bytes], bool] = lambda chunk: True
        self.connections = 0
        self._target = target
        self._server: asyncio.AbstractServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> Relay:
        """Listens."""
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", self.port)
        return self

    async def cut(self) -> None:
        """Resets all connections and listens no more, until `start`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset(self) -> None:
        """Resets the connections that there are."""
        for task in self._tasks:
            task.cancel()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        self.connections += 1
        far: asyncio.StreamWriter | None = None
        try:
            first = await reader.read(65536)
            answer = self.refuse(first)
            if answer is not None:
                writer.write(answer)
                await writer.drain()
                return
            back, far = await asyncio.open_connection("127.0.0.1", self._target)
            far.write(first)
            await asyncio.wait(
                [
                    asyncio.ensure_future(self._pump(reader, far, self.inspect)),
                    asyncio.ensure_future(self._pump(back, writer, lambda chunk: True)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            if far is not None:
                far.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, look: Callable[[bytes], bool]
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                chunk = await reader.read(65536)
                if not chunk or not look(chunk):
                    return
                writer.write(chunk)
                await writer.drain()
