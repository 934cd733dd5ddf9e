"""The worker's loop: all requests that wait are read at once, run in order, and their answers written together."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from functions import frames
from functions.calls import Call, Calls
from functions.config import Config
from functions.core import Core
from functions.errors import RequestError
from functions.loading import Code
from functions.memory import keep_freed
from functions.sdk import Context, Given
from functions.secrets import Secrets

if TYPE_CHECKING:
    from functions.asking import Asker
    from functions.runtimes.base import Model

LOOK_S: Final = 0.05  # how long a thread that waits for its reply keeps the others from reading
YIELD_S: Final = 0.001
READ_BYTES: Final = 64 * 1024  # at one time; from 128 kB on, malloc has the kernel make memory for each read: 10 us
HOLD_S: Final = 0.002  # how long an answer may wait for those after it to leave in the same write


class Server:
    """Serves one function over one socket, on the thread that calls `serve`.

    Attributes:
        max_batch: how many requests it takes at once.
        calls: opens its requests and makes the frames that answer them.
        settles_late: whether it answers a request that takes too long, so that the agent need not end the worker.
    """

    settles_late = False

    def __init__(
        self, sock: socket.socket, reader: frames.FrameReader, config: Config, code: Code, models: Mapping[str, Model]
    ) -> None:
        self._sock = sock
        self._reader = reader
        self._config = config
        self._code = code
        self._handler: Callable[..., Any] = code.handler or self._single
        self._models = models
        batches = code.batch_handler is not None and (config.max_size > 1 or code.handler is None)
        self.max_batch = config.max_size if batches else 1
        self._batches = batches
        self._alike = code.alike and not config.max_delay_s
        self._secrets = Secrets(config.secrets)
        given = Given(config.function, models, config.deployment, config.state_dir, self._secrets, self._asker)
        self.calls = Calls(config, given)
        self._waiting: deque[frames.Frame] = deque()
        self._recv = sock.recv
        self._readable: Callable[[], object] = self._first_readable
        self._core: Core | None = None
        self._closed = False
        self._all_read = False  # and nothing has run since
        self._reading = threading.Lock()  # over the socket's reading end: a thread that waits for a reply reads as well
        self._out: deque[frames.Buffer] = deque()
        self._lock = threading.Lock()  # over the socket's writing end: the pulse's thread flushes as well
        self._flushed_s = time.monotonic()
        self._slowest_s = 0.0

    # -- the loop ---------------------------------------------------------------------------------------------------

    def serve(self, received: Iterable[frames.Frame] = ()) -> None:
        """Serves until STOP or the end of the stream.

        Args:
            received: frames that were read already.

        Raises:
            OSError: the other end is gone.
        """
        waiting = self._waiting
        waiting.extend(received)
        step = self._next_batch if self._batches else self._next_one
        began: float | None = None  # the clock is read only where several wait: an answer to one leaves at once
        while True:
            if not waiting:
                if not self._exchange():
                    return
                began = None
                if len(waiting) > 1:
                    began = self._flushed_s = time.monotonic()
            elif waiting[0][0][0] == frames.REQUEST:
                step()
                if waiting:
                    began = self._pace(began)
            else:
                self.flush()
                header, body = waiting.popleft()
                if header[0] == frames.STOP:
                    return
                self._examine(header, body)
                began = None

    def close(self) -> None:
        """Ends what `serve` leaves behind."""

    def _pace(self, began: float | None) -> float:
        """Writes what is held when it is held long enough, or when what comes next may take long; returns the time."""
        now = time.monotonic()
        if began is not None:
            self._slowest_s = max(now - began, self._slowest_s * 0.99)
        if began is None or now - self._flushed_s > HOLD_S or self._slowest_s > HOLD_S:
            self.flush()
            self._flushed_s = now
        return now

    def _examine(self, header: list[Any], body: bytes) -> None:
        """Answers a CHECK or a RECORD: runs golden requests on a model, between the requests of others."""
        from functions import health  # numpy: only where there is a model

        self._send(health.answer(header, body, self._models))
        self.flush()

    def _exchange(self) -> bool:
        """Writes what is held, then reads what has come, or comes next; False at the end of the stream.

        What `flush`, `_receive` and `_read` do, in one step of Python for what is between two requests that come alone.
        """
        # Locks by their methods: a `with` costs 0.1 us more of each, warm.
        out, reader, waiting = self._out, self._reader, self._waiting
        if out:
            self._lock.acquire()
            try:
                if len(out) == 1:
                    self._sock.sendall(out.popleft())
                else:
                    self._flush()
            finally:
                self._lock.release()
        self._reading.acquire()
        try:
            if waiting or reader.missing:
                return bool(waiting) or self._take(self._read())
            self._readable()
            data = self._recv(READ_BYTES)
            self._all_read = len(data) < READ_BYTES
            found = reader.feed(data)
            if self._core is not None or not data:
                return self._take(found if data else None)
            waiting += found
            return True
        finally:
            self._reading.release()

    def _receive(self, flags: int = 0) -> bool:
        """Reads what has come, or comes next; False at the end of the stream."""
        with self._reading:
            if self._waiting and not flags:  # another thread has read it
                return True
            return self._take(self._read(flags))

    def _read(self, flags: int = 0) -> list[frames.Frame] | None:
        """What one read gives; None: the stream has ended."""
        reader = self._reader
        if reader.missing:
            keep_freed()
            return reader.receive_large(self._sock, flags)
        if not flags:
            self._readable()
        data = self._recv(READ_BYTES, flags)
        self._all_read = len(data) < READ_BYTES
        return reader.feed(data) if data else None

    def _first_readable(self) -> None:
        """Waits until there is something to read, as `_readable` does from then on.

        A read that waited would be woken each time the agent takes an answer out of the socket as well: two switches to
        this process for a request that comes alone. Who polls is woken by what it polls for.
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        self._readable = poll.poll
        poll.poll()

    def _take(self, found: list[frames.Frame] | None) -> bool:
        """Puts what was read where it is waited for; False at the end of the stream."""
        if found is None:
            self._closed = True
            return False
        for frame in found:
            if self._core is not None and frame[0][0] == frames.REPLY:
                self._core.replied(*frame)
            else:
                self._waiting.append(frame)
        return True

    # -- calls to the agent -----------------------------------------------------------------------------------------

    @property
    def core(self) -> Core:
        """The function's way to the agent; made when it is first asked for."""
        if self._core is None:
            self._core = Core(self._send_now, self._await)
        return self._core

    def _await(self, done: threading.Event) -> None:
        """Returns when the reply is there, or never will be; reads what comes, unless another thread does."""
        while not done.is_set() and not self._closed:
            if self._reading.acquire(blocking=False):
                try:
                    if not done.is_set() and select.select([self._sock], [], [], LOOK_S)[0]:
                        self._take(self._read())
                finally:
                    self._reading.release()
            done.wait(YIELD_S)  # lets the others read

    def _send_now(self, frame: bytes) -> None:
        with self._lock:
            self._out.append(frame)
            self._flush()

    def flush(self) -> None:
        """Writes all answers that are held, in one call."""
        with self._lock:
            self._flush()

    def flush_if_free(self) -> None:
        """The same from another thread, unless this one is writing just now."""
        if self._lock.acquire(blocking=False):
            try:
                self._flush()
            finally:
                self._lock.release()

    def _flush(self) -> None:
        out = self._out
        if held := len(out):  # whole frames: `extend` adds one in a single step of the interpreter
            frames.send_all(self._sock, [out.popleft() for _ in range(held)])

    def _send(self, frame: list[frames.Buffer]) -> None:
        self._out.extend(frame)

    # -- one at a time ----------------------------------------------------------------------------------------------

    def _next_one(self) -> None:
        calls = self.calls
        call = calls.received(self._waiting.popleft())
        if call.unusual and call.refused is not None:
            self._fail(call, call.refused)
            return
        try:
            self._out.extend(calls.answer(call, self._handler(call.event, call)))
        except BaseException as error:  # SystemExit too: a request never ends the worker
            self._fail(call, error)

    def _asker(self, call: Context) -> Asker:
        from functions.asking import Asker  # only where it is used

        return Asker(self.core, call.n, call.content_type)

    def _opened(self, frame: frames.Frame) -> Call | None:
        """The request with its event decoded; None where that failed and is answered."""
        call = self.calls.received(frame)
        if call.refused is not None:
            self._fail(call, call.refused)
            return None
        return call

    def _fail(self, call: Call, error: BaseException) -> None:
        self._send(self.calls.failure(call, error))

    # -- several at once --------------------------------------------------------------------------------------------

    def _next_batch(self) -> None:
        if self._alike and self._all_read and len(self._waiting) == 1:
            self._all_read = False
            self._next_one()
            return
        calls = self._gathered()
        if not calls:
            return
        handler = self._code.batch_handler
        assert handler is not None
        try:
            results = handler([call.event for call in calls], calls)
        except BaseException as error:
            if len(calls) == 1:
                self._fail(calls[0], error)
                return
            for call in calls:  # one bad request does not fail the others
                self._run_again(call)
            return
        if not isinstance(results, (list, tuple)) or len(results) != len(calls):
            self._mismatch(calls, results)
            return
        for call, result in zip(calls, results, strict=True):
            self._settle(call, result)

    def _run_again(self, call: Call) -> None:
        """Runs one request of a batch that failed by itself; what it published and kept there does not count."""
        call.published = call.kept = None
        try:
            self._send(self.calls.answer(call, self._handler(call.event, call)))
        except BaseException as error:
            self._fail(call, error)

    def _single(self, event: Any, context: Context) -> Any:
        assert self._code.batch_handler is not None
        (result,) = self._code.batch_handler([event], [context])
        if isinstance(result, BaseException):
            raise result
        return result

    def _settle(self, call: Call, result: Any) -> None:
        if isinstance(result, BaseException):
            self._fail(call, result)
            return
        try:
            self._send(self.calls.answer(call, result))
        except BaseException as error:
            self._fail(call, error)

    def _mismatch(self, calls: list[Call], results: Any) -> None:
        got = f"{len(results)} results" if isinstance(results, (list, tuple)) else f"a {type(results).__name__}"
        message = f"batch_handler returned {got} for {len(calls)} requests; a list with one for each is expected."
        for call in calls:
            self._fail(call, RequestError("BATCH_RESULT_MISMATCH", message))

    def _gathered(self) -> list[Call]:
        """Up to `max_batch` requests of what waits, waiting for more as long as the batch may."""
        waiting, most = self._waiting, self.max_batch
        delay_s = self._config.max_delay_s
        deadline = time.monotonic() + delay_s if delay_s else 0.0
        calls: list[Call] = []
        while len(calls) < most:
            if not waiting and ((self._all_read and not delay_s) or not self._more(deadline)):
                break
            if waiting[0][0][0] != frames.REQUEST:
                break
            call = self._opened(waiting.popleft())
            if call is not None:
                calls.append(call)
        self._all_read = False
        return calls

    def _more(self, deadline: float) -> bool:
        """Reads what has arrived, or arrives before `deadline`; the end of the stream shows again at the next read."""
        self.flush()
        while not self._waiting:
            left = deadline - time.monotonic()
            if left > 0 and not select.select([self._sock], [], [], left)[0]:
                return False
            try:
                if not self._receive(socket.MSG_DONTWAIT):
                    return False
            except BlockingIOError:
                return False
        return True
