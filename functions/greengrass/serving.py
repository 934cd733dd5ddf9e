"""The worker's loop for V1 Lambda code: its top level and its handler run on the main thread, one after the other.

A thread of its own reads what comes, so that the function's threads have their replies whatever the main thread does.
The function counts as ready when its top level has returned, or once that has plainly come to stay: it runs for
`SETTLED_S`, and is not importing anything. Requests that come before it returns wait for it, for most of their
Timeout, and are then answered FUNCTION_BUSY: as in V1, nobody calls the handler of a function that loops for ever.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from functions import frames, payload
from functions.calls import Call
from functions.config import Config
from functions.errors import RequestError
from functions.greengrass.context import USUAL_TIMEOUT_S, LambdaContext
from functions.greengrass.core import LambdaCore
from functions.loading import Code
from functions.serving import Server

SETTLED_S: Final = 5.0
LOOK_EVERY_S: Final = 0.05
PATIENCE: Final = 0.7  # of a request's Timeout, after which the agent would end the worker
IMPORTS: Final = "<frozen importlib"
END_OF_STREAM: Final = None


class LambdaServer(Server):
    """Serves one function over one socket.

    Args:
        announce: sends READY; called once, from any thread.
        end: ends the process.
    """

    def __init__(
        self,
        sock: socket.socket,
        reader: frames.FrameReader,
        config: Config,
        announce: Callable[[], None],
        end: Callable[[int], None],
    ) -> None:
        super().__init__(sock, reader, config, Code(self._not_yet, None), {})
        self._core = self._lambda_core = LambdaCore(self._send_now, self._secrets)
        self._announce = announce
        self._end = end
        self._inbox: queue.SimpleQueue[frames.Frame | None] = queue.SimpleQueue()
        self._gate = threading.Lock()  # over what follows, which tells whether the top level has returned
        self._importing = True
        self._announced = False
        self._held: list[tuple[float, frames.Frame]] = []
        self._main = threading.get_ident()

    @staticmethod
    def _not_yet(event: Any, context: Any) -> Any:
        raise AssertionError("a handler that has not been found is not called")

    # -- while the top level runs -------------------------------------------------------------------------------------

    def listen(self, received: Iterable[frames.Frame] = ()) -> None:
        """Starts to read, and to watch over the import.

        Args:
            received: frames that were read already.
        """
        for frame in received:
            self._sort(frame)
        for run in (self._listen, self._watch):
            threading.Thread(target=run, name=f"marram{run.__name__}", daemon=True).start()

    def imported(self, handler: Callable[..., Any]) -> None:
        """The top level has returned: what was held is served, by `serve`."""
        with self._gate:
            self._handler = handler
            self._importing = False
            for _, frame in self._held:
                self._inbox.put(frame)
            self._held.clear()
        self.ready()

    def ready(self) -> None:
        """Says READY, unless that is said already."""
        with self._gate:
            if self._announced:
                return
            self._announced = True
        self._announce()

    @property
    def lambda_core(self) -> LambdaCore:
        """What V1's modules use."""
        return self._lambda_core

    @property
    def announced(self) -> bool:
        """Whether READY was said."""
        return self._announced

    def _watch(self) -> None:
        settled_s = time.monotonic() + SETTLED_S
        while self._importing:
            now = time.monotonic()
            if not self._announced and now >= settled_s:
                if self._imports_another():
                    settled_s = now + 1.0
                else:
                    self.ready()
            self._refuse_late(now)
            time.sleep(LOOK_EVERY_S)

    def _imports_another(self) -> bool:
        """Whether the main thread is importing something below the function's own top level."""
        frame = sys._current_frames().get(self._main)
        code = (self._config.code or "") + os.sep
        while frame is not None and not frame.f_code.co_filename.startswith(code):
            if frame.f_code.co_filename.startswith(IMPORTS):
                return True
            frame = frame.f_back
        return False

    def _refuse_late(self, now: float) -> None:
        with self._gate:
            late = [frame for due_s, frame in self._held if due_s <= now]
            self._held = [each for each in self._held if each[0] > now]
        for frame in late:
            call = self.calls.received(frame)
            text = (
                f"The top level of the function {self._config.function} has not returned, so its handler is not called."
            )
            self._send(self.calls.failure(call, RequestError("FUNCTION_BUSY", text)))
        if late:
            self.flush_quietly()

    # -- reading ------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        try:
            while (found := self._read()) is not None:
                for frame in found:
                    self._sort(frame)
        except OSError:
            pass
        self._sort_end()

    def _sort(self, frame: frames.Frame) -> None:
        kind = frame[0][0]
        if kind == frames.REPLY:
            self._lambda_core.replied(*frame)
            return
        with self._gate:
            if not self._importing:
                self._inbox.put(frame)
                return
            if kind == frames.REQUEST:
                self._held.append((time.monotonic() + PATIENCE * (self._config.timeout_s or USUAL_TIMEOUT_S), frame))
                return
        if kind == frames.STOP:
            self.flush_quietly()
            self._end(0)
        self._examine(*frame)

    def _sort_end(self) -> None:
        if self._importing:
            self._end(0)  # the agent is gone
        self._inbox.put(END_OF_STREAM)

    def _exchange(self) -> bool:
        self.flush()
        return self._receive()

    def _receive(self, flags: int = 0) -> bool:
        try:
            frame = self._inbox.get(block=not flags)
        except queue.Empty:
            raise BlockingIOError from None
        if frame is END_OF_STREAM:
            return False
        self._waiting.append(frame)
        return True

    # -- writing ------------------------------------------------------------------------------------------------------

    def say(self, frame: list[frames.Buffer]) -> None:
        """Writes a frame at once, from any thread; nobody is left to hear of it where that fails."""
        self._send(frame)
        self.flush_quietly()

    def flush_quietly(self) -> None:
        """The same as `flush`, where nobody is left to hear of it."""
        try:
            self.flush()
        except OSError:
            pass

    # -- serving ------------------------------------------------------------------------------------------------------

    def _next_one(self) -> None:
        frame = self._waiting.popleft()
        call = self._opened(frame) if frame[1] else self._opened_empty(frame)
        if call is not None:
            self._run(call)

    def _opened_empty(self, frame: frames.Frame) -> Call:
        """An invocation without a payload."""
        call = self.calls.received(frame)
        call.refused = None
        call.event = b"" if call.content_type == payload.BINARY else None
        return call

    def _run(self, call: Call) -> None:
        self._lambda_core.serving(call.n)
        try:
            context = LambdaContext(self._config, call.request, call.topic, call.client_context)
            self._send(self._result(call, self._handler(call.event, context)))
        except BaseException as error:  # SystemExit too: a request never ends the worker
            self._fail(call, error)
        finally:
            self._lambda_core.serving(0)

    def _result(self, call: Call, result: Any) -> list[frames.Buffer]:
        """The RESULT frame: what a V1 handler returns answers whoever waits, and is published nowhere."""
        waited_for = call.wanted or call.reply_to is not None
        if not waited_for and (result is None or not self._config.captured):
            return frames.pack([frames.RESULT, call.n, call.request, call.reply_to, [], None])
        if result is None and call.client_context is None:
            kind = call.content_type if call.content_type == payload.MSGPACK else payload.JSON
            content_type, body = payload.encode({"meta": {"request": call.request}}, kind)
            answer = [content_type, len(body)]
        else:
            content_type, body = payload.encode(result, call.content_type)
            answer = [content_type, len(body), True]
        return frames.pack([frames.RESULT, call.n, call.request, call.reply_to, [], answer], body)

    def _examine(self, header: list[Any], body: bytes) -> None:
        """Answers a CHECK: V1 code loads its models itself, so the check loads the one that it is about."""
        from functions import health
        from functions.runtimes.loading import load

        models = {m.id: load(m.id, m.path, m.runtime, m.options) for m in self._config.models if m.id == header[2]}
        self._send(health.answer(header, body, models))
        self.flush()
