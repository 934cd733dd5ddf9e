"""The worker's loop for an ``async def handler``: several requests under way at once, on one event loop.

As many at a time as the deployment's Concurrency says; the rest waits here. What runs into its Timeout is answered and
cancelled by itself, and harms none of the others. A handler that blocks the loop is the agent's matter, as any other.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from functions import frames
from functions.calls import Call
from functions.config import Config
from functions.errors import CodedError, RequestError
from functions.loading import Code
from functions.serving import Server

if TYPE_CHECKING:
    from functions.runtimes.base import Model


class AsyncServer(Server):
    """Serves one function over one socket, on the thread that calls `serve`, which runs the event loop."""

    settles_late = True

    def __init__(
        self, sock: socket.socket, reader: frames.FrameReader, config: Config, code: Code, models: Mapping[str, Model]
    ) -> None:
        super().__init__(sock, reader, config, code, models)
        self.max_batch = config.concurrency
        self._loop = asyncio.new_event_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._listening = False
        self._thread = threading.get_ident()
        self._under_way: dict[asyncio.Task[None], Call] = {}
        self._stopping = False
        self._flush_due = False

    def serve(self, received: Iterable[frames.Frame] = ()) -> None:
        """Serves until STOP, and until what was received before it is answered, or until the end of the stream.

        Raises:
            OSError: the other end is gone.
        """
        self._waiting.extend(received)
        self._stopping = False
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._ended = self._loop.create_future()
        self._advance()
        if not self._stopping:
            self._listening = True
            self._loop.add_reader(self._sock, self._on_readable)
        await self._ended
        self.flush()

    def _await(self, done: threading.Event) -> None:
        """Returns when the reply is there; the loop reads it, and must not be who waits."""
        if threading.get_ident() == self._thread:
            text = "On the event loop's own thread nobody would read the answer: await asyncio.to_thread(..) for it."
            raise CodedError("BAD_CALL", text)
        while not done.wait(1.0):
            if self._closed:
                return

    def close(self) -> None:
        """Cancels what a function has left running on the loop, and closes it."""
        self._loop.run_until_complete(_cancel_all())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _on_readable(self) -> None:
        try:
            there = self._receive(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        if there:
            self._advance()
        else:
            self._end()

    def _advance(self) -> None:
        """Begins what waits, as far as there is room."""
        waiting = self._waiting
        while waiting and not self._stopping:
            kind = waiting[0][0][0]
            if kind == frames.STOP:
                waiting.popleft()
                self._stopping = True
                self._stop_listening()
            elif kind != frames.REQUEST:
                self._examine(*waiting.popleft())
            elif len(self._under_way) < self.max_batch:
                self._begin(waiting.popleft())
            else:
                return
        if self._stopping and not self._under_way:
            self._end()

    def _stop_listening(self) -> None:
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self._sock)

    def _end(self, error: OSError | None = None) -> None:
        self._stop_listening()
        if not self._ended.done():
            self._ended.set_result(None) if error is None else self._ended.set_exception(error)

    def _begin(self, frame: frames.Frame) -> None:
        call = self._opened(frame)
        if call is None:
            return
        task = self._loop.create_task(self._handle(call))
        self._under_way[task] = call
        task.add_done_callback(self._over)
        if self._config.timeout_s is not None:
            call.timer = self._loop.call_later(self._config.timeout_s, self._late, task)

    async def _handle(self, call: Call) -> None:
        try:
            result = self._handler(call.event, call)
            if hasattr(result, "__await__"):
                result = await result
            if not call.settled:
                self._send(self.calls.answer(call, result))
        except BaseException as error:  # SystemExit too: a request never ends the worker
            if not call.settled:
                self._fail(call, error)

    def _late(self, task: asyncio.Task[None]) -> None:
        """Answers for a handler that takes too long, and cancels it."""
        call = self._under_way[task]
        call.settled = True
        function, limit = self._config.function, self._config.timeout_s
        message = f"Function {function} took longer than its Timeout of {limit:g} s."
        self._fail(call, RequestError("FUNCTION_TIMEOUT", message))
        task.cancel()

    def _over(self, task: asyncio.Task[None]) -> None:
        timer = self._under_way.pop(task).timer
        if timer is not None:
            timer.cancel()
        if not self._ended.done():
            self._advance()

    def _send(self, frame: list[frames.Buffer]) -> None:
        super()._send(frame)
        if not self._flush_due:  # what one turn of the loop answers leaves in one write
            self._flush_due = True
            self._loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush_due = False
        try:
            self.flush()
        except OSError as error:
            self._end(error)


async def _cancel_all() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
