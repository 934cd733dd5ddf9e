"""How long a device waits for a QoS 1 answer from a broker, doing nothing against delays itself. Blocks.

The agent's own link asks for quick acknowledgements, which hides what devices get from a broker that does not set
TCP_NODELAY: it sends them the PUBACK of their request and then the answer as two small segments, and the second waits
for the first one's delayed acknowledgement, 40 ms on Linux. So this speaks plain MQTT 3.1.1 over plain sockets.
"""

from __future__ import annotations

import secrets
import socket
import statistics
import struct
import time
from typing import Final

from agent.messages import Outbound
from agent.mqtt.codec import PUBACK, PUBLISH, encode_publish, puback, varint
from agent.mqtt.connecting import Address

ROUNDS: Final = 30  # the kernel acknowledges the first few segments of a connection at once
COUNTED: Final = 9
TIMEOUT_S: Final = 5.0
_CONNECT, _CONNACK, _SUBSCRIBE, _SUBACK, _DISCONNECT = 0x10, 0x20, 0x82, 0x90, b"\xe0\x00"


def delay_s(address: Address) -> tuple[float, float]:
    """(seconds to open a connection, median seconds from a device's request until it has the answer).

    Raises:
        OSError: the broker does not answer, or does not let us.
    """
    began = time.perf_counter()
    device = _Client(address)
    near = time.perf_counter() - began
    peer = _Client(address)
    with device, peer:
        topic = f"marram-doctor/{secrets.token_hex(6)}"
        device.subscribe(topic)
        times = []
        for number in range(2, ROUNDS + 2):
            began = time.perf_counter()
            device.publish(f"{topic}/request", number)
            peer.publish(topic, number)
            device.take()
            times.append(time.perf_counter() - began)
    return near, statistics.median(times[-COUNTED:])


class _Client:
    """One connection, which waits for each answer."""

    def __init__(self, address: Address) -> None:
        self._sock = socket.create_connection((address.host, address.port), TIMEOUT_S)
        # What is measured is the broker's end.
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self._sock.makefile("rb")
        self._sock.sendall(_packet(_CONNECT, _connect(address)))
        self._expect(_CONNACK, 0)

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._sock.sendall(_DISCONNECT)
        except OSError:
            pass
        self._sock.close()

    def subscribe(self, topic: str) -> None:
        """Returns at the SUBACK."""
        self._sock.sendall(_packet(_SUBSCRIBE, b"\x00\x01" + _text(topic) + b"\x01"))
        self._expect(_SUBACK, 1)

    def publish(self, topic: str, number: int) -> None:
        """Returns at the PUBACK."""
        self._sock.sendall(encode_publish(None, Outbound(topic, b"?"), number))
        self._expect(PUBACK, 255)

    def take(self) -> None:
        """Takes a PUBLISH and acknowledges it."""
        packet = self._read()
        if packet[0] & 0xF0 != PUBLISH or len(packet) < 6:
            raise OSError("the broker sent what was not asked for")
        at = 4 + (packet[2] << 8 | packet[3])
        self._sock.sendall(puback(packet[at] << 8 | packet[at + 1]))

    def _expect(self, kind: int, most: int) -> None:
        packet = self._read()
        if packet[0] != kind or packet[-1] > most:
            raise OSError("the broker does not let us")

    def _read(self) -> bytes:
        head = self._stream.read(2)
        if len(head) < 2 or not 0 < head[1] < 128:
            raise OSError("the broker went away")
        return head + self._stream.read(head[1])


def _connect(address: Address) -> bytes:
    flags, login = 0x02, b""
    if address.username is not None:
        flags |= 0x80
        login += _text(address.username)
        if address.password is not None:
            flags |= 0x40
            login += _text(address.password)
    return _text("MQTT") + bytes((4, flags)) + struct.pack(">H", 30) + _text(f"marram-{secrets.token_hex(6)}") + login


def _packet(kind: int, body: bytes) -> bytes:
    return bytes((kind,)) + varint(len(body)) + body


def _text(value: str) -> bytes:
    body = value.encode()
    return struct.pack(">H", len(body)) + body
