"""The worker's loop: all requests that wait are read at once, run in order, and their answers written together."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from functions import frames, payload
from functions.config import Config
from functions.errors import RequestError
from functions.loading import Code, told
from functions.sdk import Context, Result

if TYPE_CHECKING:
    from functions.runtimes.base import Model

HOLD_S: Final = 0.002  # how long an answer may wait for those after it to leave in the same write
MAX_TEXT: Final = 1024  # characters of an id or topic that a payload names; an MQTT string has 65,535 bytes at most


class _Call:
    """A request whose event is decoded."""

    __slots__ = ("context", "event", "kind", "n", "reply_to", "request", "topic", "wanted")

    def __init__(self, n: int, topic: str, kind: str, request: str, wanted: bool) -> None:
        self.n = n
        self.topic = topic
        self.kind = kind
        self.request = request
        self.wanted = wanted
        self.reply_to: str | None = None
        self.event: Any = None
        self.context: Context | None = None


class Server:
    """Serves one function over one socket, on the thread that calls `serve`.

    Attributes:
        max_batch: how many requests it takes at once.
    """

    def __init__(
        self, sock: socket.socket, reader: frames.FrameReader, config: Config, code: Code, models: Mapping[str, Model]
    ) -> None:
        self._sock = sock
        self._reader = reader
        self._config = config
        self._code = code
        self._models = models
        batches = code.batch_handler is not None and (config.max_size > 1 or code.handler is None)
        self.max_batch = config.max_size if batches else 1
        self._batches = batches
        self._origin = _origin(config)
        self._kinds: dict[str | None, str] = {}
        self._waiting: deque[frames.Frame] = deque()
        self._view = memoryview(bytearray(frames.READ_BYTES))
        self._out: list[frames.Buffer] = []
        self._lock = threading.Lock()  # over _out and the socket's writing end: the pulse's thread flushes as well
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
        self._waiting.extend(received)
        step = self._next_batch if self._batches else self._next_one
        while True:
            if not self._waiting:
                self.flush()
                if not self._receive():
                    return
            elif self._waiting[0][0][0] == frames.STOP:
                self.flush()
                return
            else:
                began = time.monotonic()
                step()
                self._pace(began)

    def _pace(self, began: float) -> None:
        """Writes what is held when it is held long enough, or when what comes next may take long."""
        now = time.monotonic()
        self._slowest_s = max(now - began, self._slowest_s * 0.99)
        if now - self._flushed_s > HOLD_S or self._slowest_s > HOLD_S:
            self.flush()

    def _receive(self, flags: int = 0) -> int:
        size = self._sock.recv_into(self._view, 0, flags)
        if size:
            self._waiting.extend(self._reader.feed(self._view[:size]))
        return size

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
        self._flushed_s = time.monotonic()
        if self._out:
            held, self._out = self._out, []
            frames.send_all(self._sock, held)

    def _send(self, frame: list[frames.Buffer]) -> None:
        with self._lock:
            self._out += frame

    # -- one at a time ----------------------------------------------------------------------------------------------

    def _next_one(self) -> None:
        call = self._opened(self._waiting.popleft())
        if call is not None:
            self._run(call, self._code.handler)

    def _run(self, call: _Call, handler: Callable[..., Any] | None) -> None:
        assert handler is not None
        context = self._context(call)
        try:
            self._answer(call, handler(call.event, context))
        except BaseException as error:  # SystemExit too: a request never ends the worker
            self._fail(call, error)

    def _context(self, call: _Call) -> Context:
        config = self._config
        call.context = Context(config.function, call.request, call.topic, self._models, config.deployment, call.kind)
        return call.context

    def _opened(self, frame: frames.Frame) -> _Call | None:
        """The request with its event decoded; None where that failed and is answered."""
        (_, n, topic, content_type, fallback, wanted), body = frame
        kind = self._kinds.get(content_type) or self._kind(content_type)
        call = _Call(n, topic, kind, fallback, wanted)
        try:
            event = call.event = payload.DECODERS[kind](body)
            if type(event) is dict:
                self._identify(call, event)
        except BaseException as error:
            self._fail(call, error)
            return None
        return call

    def _kind(self, content_type: str | None) -> str:
        kind = payload.kind_of(content_type, self._config.encoding)
        if self._config.endpoint and kind == payload.BINARY:
            kind = payload.MSGPACK  # its protocol has no plain bytes
        if len(self._kinds) < 64:  # senders choose it: not without bound
            self._kinds[content_type] = kind
        return kind

    def _identify(self, call: _Call, event: dict[str, Any]) -> None:
        """The request's own id, ``meta.id`` before the endpoint protocol's, and where it wants its answer."""
        own = None
        meta = event.get("meta")
        if type(meta) is dict:
            own = meta.get("id")
            reply_to = meta.get("reply_to")
            if reply_to is not None:
                call.reply_to = _text("meta.reply_to", reply_to)
        if own is None and self._config.endpoint:
            own = event.get("id")
        if own is not None:
            call.request = str(own) if type(own) is int else _text("The request's id", own)

    # -- several at once --------------------------------------------------------------------------------------------

    def _next_batch(self) -> None:
        calls = self._gathered()
        if not calls:
            return
        handler = self._code.batch_handler
        assert handler is not None
        contexts = [self._context(call) for call in calls]
        try:
            results = handler([call.event for call in calls], contexts)
        except BaseException as error:
            if len(calls) == 1:
                self._fail(calls[0], error)
                return
            for call in calls:  # one bad request does not fail the others
                self._run(call, self._code.handler or self._single)
            return
        if not isinstance(results, (list, tuple)) or len(results) != len(calls):
            self._mismatch(calls, results)
            return
        for call, result in zip(calls, results, strict=True):
            self._settle(call, result)

    def _single(self, event: Any, context: Context) -> Any:
        assert self._code.batch_handler is not None
        (result,) = self._code.batch_handler([event], [context])
        if isinstance(result, BaseException):
            raise result
        return result

    def _settle(self, call: _Call, result: Any) -> None:
        if isinstance(result, BaseException):
            self._fail(call, result)
            return
        try:
            self._answer(call, result)
        except BaseException as error:
            self._fail(call, error)

    def _mismatch(self, calls: list[_Call], results: Any) -> None:
        got = f"{len(results)} results" if isinstance(results, (list, tuple)) else f"a {type(results).__name__}"
        message = f"batch_handler returned {got} for {len(calls)} requests; a list with one for each is expected."
        for call in calls:
            self._fail(call, RequestError("BATCH_RESULT_MISMATCH", message))

    def _gathered(self) -> list[_Call]:
        """Up to `max_batch` requests of what waits, waiting for more as long as the batch may."""
        waiting, most = self._waiting, self.max_batch
        deadline = time.monotonic() + self._config.max_delay_s
        calls: list[_Call] = []
        while len(calls) < most:
            if not waiting and not self._more(deadline):
                break
            if waiting[0][0][0] == frames.STOP:
                break
            call = self._opened(waiting.popleft())
            if call is not None:
                calls.append(call)
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

    # -- answers ----------------------------------------------------------------------------------------------------

    def _answer(self, call: _Call, result: Any) -> None:
        assert call.context is not None
        published = call.context.published
        meta = {"request": call.request, **self._origin}
        layout: list[list[Any]] = []
        bodies: list[bytes] = []
        plain = None
        if result is None:
            if call.wanted or call.reply_to is not None:
                plain = payload.encode({"meta": meta}, call.kind if call.kind == payload.MSGPACK else payload.JSON)
        else:
            for output in result if _is_several(result) else (result,):
                self._encode(output, call.kind, meta, layout, bodies)
        for output in published or ():
            self._encode(output, call.kind, meta, layout, bodies)
        answer = None
        if plain is not None:
            answer = [plain[0], len(plain[1])]
            bodies.append(plain[1])
        self._send(frames.pack([frames.RESULT, call.n, call.request, call.reply_to, layout, answer], *bodies))

    def _encode(
        self, output: Any, kind: str, meta: dict[str, Any], layout: list[list[Any]], bodies: list[bytes]
    ) -> None:
        """Appends one output to a frame's layout and bodies."""
        topic = content_type = None
        if type(output) is Result:
            topic, content_type, output = output.topic, output.content_type, output.payload
        if type(output) is dict and self._config.meta:
            own = output.get("meta")
            output = {**output, "meta": {**own, **meta} if type(own) is dict else meta}
        if content_type is None:
            content_type, body = payload.encode(output, kind)
        else:
            content_type, body = payload.encode_as(output, content_type)
        layout.append([topic, content_type, len(body)])
        bodies.append(body)

    def _fail(self, call: _Call, error: BaseException) -> None:
        if isinstance(error, RequestError):
            code, message = error.code, error.message
        elif isinstance(error, MemoryError):
            code, message = "OUT_OF_MEMORY", f"The function {self._config.function} ran out of memory."
        else:
            code, message = "FUNCTION_RAISED", told(error, self._config.code)
        self._send(frames.pack([frames.ERROR, call.n, call.request, call.reply_to, code, _sendable(message)]))


def _text(name: str, value: Any) -> str:
    """`value` where it is a text that MQTT can carry (no control characters, no lone surrogates).

    Raises:
        RequestError: BAD_PAYLOAD.
    """
    if type(value) is str and 0 < len(value) <= MAX_TEXT and value.isprintable():
        return value
    raise RequestError("BAD_PAYLOAD", f"{name} must be a text of 1 to {MAX_TEXT} printable characters.")


def _sendable(message: str) -> str:
    return message.encode(errors="replace").decode()


def _origin(config: Config) -> dict[str, str]:
    """The part of ``meta`` that is the same for every request; what there is not is left out."""
    versions = {model.id: model.version for model in config.models}
    origin = {"model": config.model, "version": versions.get(config.model or ""), "deployment": config.deployment}
    return {key: value for key, value in origin.items() if value}


def _is_several(result: Any) -> bool:
    """Whether it is a list of nothing but `Result`; any other list is one result."""
    return type(result) is list and bool(result) and all(type(each) is Result for each in result)
