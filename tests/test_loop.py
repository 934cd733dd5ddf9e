"""The agent's event loop: readers that run within the poll, beside all that asyncio does itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from agent.loop import Loop, Turn, run, turn_of

Runner = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[run, asyncio.run], ids=["ours", "asyncio"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """Our loop and asyncio's own: what is asked of a turn holds on both."""
    return request.param  # type: ignore[no-any-return]


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def test_what_is_read_together_leaves_together_and_before_the_next_poll(runner: Runner) -> None:
    async def main() -> None:
        turn, order = turn_of(asyncio.get_running_loop()), []
        done = asyncio.Event()
        with pair() as (first, one), pair() as (second, two):

            def read(sock: socket.socket) -> None:
                order.append(sock.recv(10))
                turn.soon(lambda: order.append(b"left"))
                if len([each for each in order if each != b"left"]) == 2:
                    turn.soon(done.set)

            for sock in (first, second):
                turn.add_reader(sock.fileno(), lambda sock=sock: read(sock))
            one.send(b"a")
            two.send(b"b")
            await asyncio.wait_for(done.wait(), 10)
            for sock in (first, second):
                turn.remove_reader(sock.fileno())
        assert sorted(order) == [b"a", b"b", b"left", b"left"]
        assert order[-1] == b"left"

    runner(main())


def test_timers_and_tasks_get_their_turn_while_a_socket_never_rests(runner: Runner) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        turn, reads = turn_of(loop), []
        with pair() as (ours, theirs):

            def read() -> None:
                reads.append(ours.recv(1))
                theirs.send(b"x")  # there is always more

            turn.add_reader(ours.fileno(), read)
            theirs.send(b"x")
            await asyncio.wait_for(asyncio.sleep(0.05), 10)
            assert reads
            before = len(reads)
            ran = asyncio.Event()
            loop.call_soon_threadsafe(ran.set)
            await asyncio.wait_for(ran.wait(), 10)
            await asyncio.wait_for(asyncio.to_thread(os.getpid), 10)
            assert len(reads) > before
            turn.remove_reader(ours.fileno())

    runner(main())


def test_what_a_reader_asks_of_the_loop_is_done_at_once(runner: Runner) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        turn, soon, timed = turn_of(loop), asyncio.Event(), asyncio.Event()
        answer: asyncio.Future[bytes] = loop.create_future()
        with pair() as (ours, theirs):

            def read() -> None:
                answer.set_result(ours.recv(10))
                loop.call_soon(soon.set)
                loop.call_later(0.01, timed.set)

            turn.add_reader(ours.fileno(), read)
            theirs.send(b"x")
            # Nothing else would end the poll: without a time-out of ours, it has none.
            assert await answer == b"x"
            await soon.wait()
            await timed.wait()
            turn.remove_reader(ours.fileno())

    runner(main())


def test_a_writer_of_asyncio_s_stands_beside_a_reader_of_ours() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        turn, read, written = turn_of(loop), asyncio.Event(), asyncio.Event()
        with pair() as (ours, theirs):
            turn.add_reader(ours.fileno(), lambda: (ours.recv(10), read.set()))
            loop.add_writer(ours, written.set)
            await asyncio.wait_for(written.wait(), 10)
            loop.remove_writer(ours)
            theirs.send(b"x")
            await asyncio.wait_for(read.wait(), 10)
            turn.remove_reader(ours.fileno())
            taken = asyncio.Event()
            loop.add_reader(ours, taken.set)
            theirs.send(b"y")
            await asyncio.wait_for(taken.wait(), 10)
            assert loop.remove_reader(ours)
            assert not loop.remove_reader(ours)

    run(main())


def test_a_reader_that_raises_is_told_and_ends_nothing() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        told: list[Any] = []
        loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
        again = asyncio.Event()
        with pair() as (ours, theirs):

            def read() -> None:
                if ours.recv(1) == b"b":
                    again.set()
                else:
                    raise LookupError("a mistake")

            turn_of(loop).add_reader(ours.fileno(), read)
            theirs.send(b"a")
            theirs.send(b"b")
            await asyncio.wait_for(again.wait(), 10)
            turn_of(loop).remove_reader(ours.fileno())
        assert [str(each) for each in told] == ["a mistake"]

    run(main())


def test_a_reader_can_be_taken_away_twice_and_after_its_socket(runner: Runner) -> None:
    async def main() -> None:
        turn = turn_of(asyncio.get_running_loop())
        with pair() as (ours, _):
            number = ours.fileno()
            turn.add_reader(number, lambda: None)
            turn.remove_reader(number)
            turn.remove_reader(number)
        turn.remove_reader(ours.fileno())
        with pair() as (ours, theirs):  # most likely the same number
            read = asyncio.Event()
            turn.add_reader(ours.fileno(), read.set)
            theirs.send(b"x")
            await asyncio.wait_for(read.wait(), 10)
            turn.remove_reader(ours.fileno())

    runner(main())


def test_asyncio_s_own_sockets_and_children_work_on_it() -> None:
    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read(10))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello")
            assert await reader.read() == b"hello"
            writer.close()
            await writer.wait_closed()
        child = await asyncio.create_subprocess_exec("true")
        assert await child.wait() == 0

    run(main())


def test_a_loop_has_one_turn() -> None:
    loop = Loop()
    try:
        assert turn_of(loop) is turn_of(loop) is loop.turn
        assert isinstance(loop.turn, Turn)
    finally:
        loop.close()
