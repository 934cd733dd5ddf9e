"""The agent's end of a worker's socket: what is large arrives whole, in order, and where it stays."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from agent.inference.launching import pair
from agent.inference.wire import Wire
from functions import frames

DEADLINE_S = 30.0
SIZES = [0, 10, 8_000_000, 0, 100_000, 70_000, 65_536, 65_535, 3, 20_000, 1_000_000, 5]


class Ends:
    """A wire and the worker's end of it, which blocks."""

    def __init__(self) -> None:
        ours, self.theirs = pair()
        self.got: list[frames.Frame] = []
        self.ended = asyncio.Event()
        self.news = asyncio.Event()
        self.wire = Wire(
            ours, asyncio.get_running_loop(), on_frame=self._on_frame, on_wrong=self._wrong, on_end=self.ended.set
        )

    def _on_frame(self, header: list[Any], body: bytes) -> None:
        self.got.append((header, body))
        self.news.set()

    def _wrong(self, error: Exception) -> None:
        raise AssertionError(error)

    def close(self) -> None:
        self.wire.close()
        self.theirs.close()


def run(test: Callable[[Ends], Any]) -> None:
    async def main() -> None:
        ends = Ends()
        try:
            await asyncio.wait_for(test(ends), DEADLINE_S)
        finally:
            ends.close()

    asyncio.run(main())


def read(sock: socket.socket, count: int) -> tuple[list[frames.Frame], int]:
    """Frames as a worker reads them, and how many bodies came in one piece of their own."""
    reader, view, got, fenced = frames.FrameReader(), memoryview(bytearray(frames.READ_BYTES)), [], 0
    while len(got) < count:
        if reader.missing:
            before = reader.missing
            found = reader.receive_large(sock)
            assert found is not None
            fenced += bool(found) and len(found[0][1]) == before
        else:
            found = reader.feed(view[: sock.recv_into(view)])
        got += found
    return got, fenced


def test_large_bodies_reach_a_worker_whole_and_in_a_read_of_their_own() -> None:
    bodies = [os.urandom(size) for size in SIZES]

    async def send(ends: Ends) -> None:
        for n, body in enumerate(bodies):
            ends.wire.send([n], body)
        got, fenced = await asyncio.to_thread(read, ends.theirs, len(bodies))
        assert got == [([n], body) for n, body in enumerate(bodies)]
        assert fenced == sum(size >= frames.LARGE_BYTES for size in SIZES)

    run(send)


def test_large_bodies_of_a_worker_arrive_whole() -> None:
    bodies = [os.urandom(size) for size in SIZES]

    async def receive(ends: Ends) -> None:
        parts = [part for n, body in enumerate(bodies) for part in frames.pack([n], body)]
        await asyncio.to_thread(frames.send_all, ends.theirs, parts)
        while len(ends.got) < len(bodies):
            ends.news.clear()
            await ends.news.wait()
        assert ends.got == [([n], body) for n, body in enumerate(bodies)]

    run(receive)


@pytest.mark.parametrize("part", [0, 1000])
def test_a_worker_that_ends_in_a_large_body_has_ended(part: int) -> None:
    async def receive(ends: Ends) -> None:
        head, body = frames.pack([1], bytes(1_000_000))
        ends.theirs.sendall(bytes(head) + bytes(body)[:part])
        ends.theirs.close()
        await ends.ended.wait()
        assert ends.got == []

    run(receive)


def test_descriptors_do_not_pile_up_on_either_side() -> None:
    async def send(ends: Ends) -> None:
        for round_ in range(3):
            for n in range(30):
                ends.wire.send([n], bytes(70_000))
            await asyncio.to_thread(read, ends.theirs, 30)
            if round_ == 0:
                before = len(os.listdir("/proc/self/fd"))
        assert len(os.listdir("/proc/self/fd")) == before

    run(send)
