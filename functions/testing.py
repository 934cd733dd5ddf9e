"""A test kit: runs a function in its author's own pytest, with no broker and no agent.

It is the worker itself, in the test's process: the code is loaded, payloads are decoded, results are encoded and errors
told as on a device, so that what passes here passes there. What only the agent does is left out: queues, the end of a
worker that hangs or grows, subscriptions, isolation. ::

    import pytest

    from functions.testing import Function, RefusedError


    @pytest.fixture(scope="module")
    def sorter():
        with Function("functions/sorter", models={"sorter-model": "models/sorter"}) as function:
            yield function


    def test_a_small_part(sorter):
        answer = sorter.ask({"weight": 3.5})
        assert answer.payload["class"] == "small"


    def test_a_part_without_weight(sorter):
        with pytest.raises(RefusedError) as refused:
            sorter.ask({})
        assert refused.value.code == "WEIGHT_MISSING"

A `StandIn` takes the place of a model that is not there. On a deployed core a model is loaded from its archive's files;
here from a directory that holds the same.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from functions import config, frames, payload, startup
from functions.calls import Call, Calls
from functions.errors import CodedError, StartError
from functions.payload import BINARY, JSON, MSGPACK

if TYPE_CHECKING:
    import socket

    from functions.runtimes.base import Model
    from functions.sdk import Given
    from functions.stand_in import StandIn

__all__ = [
    "BINARY",
    "JSON",
    "MSGPACK",
    "Answer",
    "Function",
    "Output",
    "RefusedError",
    "Sample",
    "StandIn",
    "StartError",
]

_VERSION: Final = "sha256:" + "0" * 64


def __getattr__(name: str) -> Any:
    if name == "StandIn":  # numpy: only where a model is used
        from functions.stand_in import StandIn

        return StandIn
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class RefusedError(CodedError):
    """The request was answered with an error; its cause is the exception that was raised, where there was one."""

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class Output(NamedTuple):
    """A result, or what `Context.publish` was given.

    Attributes:
        topic: where it goes; of a result that names none, the request's topic and the function's Id.
        body: the bytes that are sent.
        payload: the same, decoded: as JSON, msgpack (with numpy arrays), or the bytes.
    """

    topic: str
    content_type: str
    body: bytes
    payload: Any


class Sample(NamedTuple):
    """What `Context.capture` kept, decoded: `input` and `output` as the sample will hold them."""

    reason: str
    input: Any
    output: Any


class Answer(NamedTuple):
    """What a function made of a request.

    Attributes:
        payload: its first result, decoded; None where there is none.
        request: the request's id.
        reply_to: where its payload wants the answer.
        outputs: all of its results, then what it published.
        samples: what it kept.
        seconds: how long its handler took, or that of its batch.
    """

    payload: Any
    request: str
    reply_to: str | None
    outputs: tuple[Output, ...]
    samples: tuple[Sample, ...]
    seconds: float


class Function:
    """A function as its worker runs it. A context manager; without one, call `close`.

    Args:
        folder: the function's folder; None for a model endpoint without code.
        models: by resource Id: a directory of a model, or a model, such as a `StandIn`.
        id: the function's Id; by default the folder's name.
        encoding: EncodingType, ``json`` or ``binary``.
        meta: whether results that are objects get ``meta``, as ``Marram: {Meta: ..}``.
        max_batch: ``Marram: {Batch: {MaxSize: ..}}``.
        concurrency: ``Marram: {Concurrency: ..}``, of an async handler.
        timeout_s: Timeout; a request that takes longer is refused, though a plain handler is not stopped here. None:
            any time.
        runtimes: the models' runtimes by resource Id, where their files do not tell.
        handler: the handler's name.
        state_dir: the function's own directory; by default an empty one that goes with it.

    Raises:
        StartError: why it would not start on a device either.
    """

    def __init__(
        self,
        folder: str | Path | None,
        *,
        models: Mapping[str, str | Path | Model] | None = None,
        id: str | None = None,
        encoding: str = "json",
        meta: bool = True,
        max_batch: int = 1,
        concurrency: int | None = None,
        timeout_s: float | None = None,
        runtimes: Mapping[str, str] | None = None,
        handler: str | None = None,
        state_dir: str | Path | None = None,
    ) -> None:
        code = Path(folder).resolve() if folder is not None else None
        self.id = id or (code.name if code else "endpoint")
        self._code = code
        self._before = list(sys.path), sys.dont_write_bytecode
        self._modules = set(sys.modules)
        self._own_dir = None if state_dir is not None else tempfile.TemporaryDirectory(prefix="marram-function-")
        paths = {key: each for key, each in (models or {}).items() if isinstance(each, (str, os.PathLike))}
        given = {key: cast("Model", each) for key, each in (models or {}).items() if key not in paths}
        settings = config.read(
            {
                "function": self.id,
                "code": str(code) if code else None,
                "endpoint": code is None,
                "encoding": encoding,
                "meta": meta,
                "model": next(iter(models), None) if models else None,
                "deployment": "test",
                "models": [_model(key, Path(path), runtimes or {}) for key, path in paths.items()],
                "batch": {"max_size": max_batch},
                "handler": handler,
                "state_dir": str(state_dir if self._own_dir is None else self._own_dir.name),
                "concurrency": concurrency,
                "timeout_s": timeout_s,
            }
        )
        self._timeout_s = timeout_s
        self._default_type = JSON if encoding == "json" else MSGPACK if code is None else BINARY
        self._wire = _Wire()
        self._asked = 0
        try:
            self._server, _ = startup.prepared(
                cast("socket.socket", self._wire), frames.FrameReader(), settings, {k: given[k] for k in given}
            )
        except BaseException:
            self._forget()
            raise
        self._calls = self._server.calls = _Calls(settings, self._server.calls.given)

    def ask(self, event: Any, *, topic: str = "test", content_type: str | None = None, id: str | None = None) -> Answer:
        """Runs one request.

        Args:
            event: bytes are the payload as it is; anything else is encoded as the content type says.
            topic: the topic that it comes on.
            content_type: `JSON`, `MSGPACK` or `BINARY`; by default as the function's encoding.
            id: of the request, where the event names none.

        Raises:
            RefusedError: it is answered with an error.
        """
        [outcome] = self.ask_all([event], topic=topic, content_type=content_type, ids=[id] if id else None)
        if isinstance(outcome, RefusedError):
            if isinstance(outcome.__cause__, KeyboardInterrupt):
                raise outcome.__cause__
            raise outcome
        return outcome

    def ask_all(
        self,
        events: Iterable[Any],
        *,
        topic: str = "test",
        content_type: str | None = None,
        ids: Sequence[str] | None = None,
    ) -> list[Answer | RefusedError]:
        """Runs requests that wait together: a `batch_handler` gets them in batches, an async handler at once.

        Returns:
            For each event what became of it; what was refused is not raised.
        """
        kind = content_type or self._default_type
        reader, received = frames.FrameReader(), []
        numbers = []
        for place, event in enumerate(events):
            self._asked += 1
            numbers.append(self._asked)
            request = ids[place] if ids else f"request-{self._asked}"
            body = bytes(event) if isinstance(event, (bytes, bytearray)) else payload.encode_as(event, kind)[1]
            header = [frames.REQUEST, self._asked, topic, content_type, request, True]
            received += reader.feed(b"".join(frames.pack(header, body)))
            self._calls.asked[self._asked] = (kind, body)
        self._server.serve([*received, ([frames.STOP], b"")])
        outcomes = {header[1]: self._outcome(header, body, topic) for header, body in self._wire.taken()}
        return [outcomes[n] for n in numbers]

    def _outcome(self, header: list[Any], body: bytes, topic: str) -> Answer | RefusedError:
        n, asked, seconds = header[1], self._calls.asked.pop(header[1]), self._calls.seconds.pop(header[1])
        if header[0] == frames.ERROR:
            refused = RefusedError(header[4], header[5])
            refused.__cause__ = self._calls.raised.pop(n, None)
            return refused
        if self._timeout_s is not None and seconds > self._timeout_s:
            return RefusedError("FUNCTION_TIMEOUT", f"It took {seconds:.3f} s, its Timeout is {self._timeout_s:g} s.")
        if header[0] == frames.JSON_RESULT:
            header = [frames.RESULT, n, header[2], None, [[None, JSON, len(body)]], None]
        _, _, request, reply_to, layout, plain, *more = header
        parts = _Parts(body)
        outputs = tuple(_output(own or f"{topic}/{self.id}", kind, parts.next(size)) for own, kind, size in layout)
        if plain is not None:
            parts.next(plain[1])
        first = outputs[0] if outputs else None
        result = (first.content_type, first.body) if first else (JSON, b"null")
        samples = tuple(_sample(each, parts, asked, result) for each in (more[0] if more else ()))
        return Answer(first.payload if first else None, request, reply_to, outputs, samples, seconds)

    def close(self) -> None:
        """Frees its models and forgets its modules, so that another function may have some of the same names."""
        self._server.close()
        self._forget()

    def _forget(self) -> None:
        sys.path[:], sys.dont_write_bytecode = self._before
        inside = f"{self._code}{os.sep}"
        for name in sys.modules.keys() - self._modules:
            if self._code is not None and (getattr(sys.modules[name], "__file__", None) or "").startswith(inside):
                del sys.modules[name]
        if self._own_dir is not None:
            self._own_dir.cleanup()

    def __enter__(self) -> Function:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Wire:
    """Stands in for the socket to the agent: keeps what is written."""

    def __init__(self) -> None:
        self._written = bytearray()

    def recv(self, size: int, flags: int = 0) -> bytes:
        raise AssertionError("what is asked ends with a STOP")

    def sendall(self, data: bytes) -> None:
        self._written += data

    def sendmsg(self, buffers: Iterable[frames.Buffer]) -> int:
        before = len(self._written)
        for each in buffers:
            self._written += each
        return len(self._written) - before

    def taken(self) -> list[frames.Frame]:
        """All frames that were written since."""
        written, self._written = self._written, bytearray()
        return frames.FrameReader().feed(bytes(written))


class _Calls(Calls):
    """Remembers what was raised, which the wire makes a text of, and how long each request took."""

    def __init__(self, settings: config.Config, given: Given) -> None:
        super().__init__(settings, given)
        self.asked: dict[int, tuple[str, bytes]] = {}
        self.raised: dict[int, BaseException] = {}
        self.seconds: dict[int, float] = {}
        self._over: set[int] = set()

    def received(self, frame: frames.Frame) -> Call:
        call = super().received(frame)
        self.seconds[call.n] = time.monotonic()
        return call

    def answer(self, call: Call, result: Any) -> list[frames.Buffer]:
        self._ended(call)
        return super().answer(call, result)

    def failure(self, call: Call, error: BaseException) -> list[frames.Buffer]:
        self._ended(call)
        self.raised[call.n] = error
        return super().failure(call, error)

    def _ended(self, call: Call) -> None:
        if call.n not in self._over:  # a result that cannot be encoded comes twice
            self._over.add(call.n)
            self.seconds[call.n] = time.monotonic() - self.seconds[call.n]


class _Parts:
    """A frame's body, part by part."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def next(self, size: int) -> bytes:
        self._at += size
        return self._body[self._at - size : self._at]


def _model(resource: str, path: Path, runtimes: Mapping[str, str]) -> dict[str, Any]:
    return {"id": resource, "path": str(path.resolve()), "version": _VERSION, "runtime": runtimes.get(resource)}


def _output(topic: str, content_type: str, body: bytes) -> Output:
    return Output(topic, content_type, body, _decoded(content_type, body))


def _decoded(content_type: str, body: bytes) -> Any:
    return payload.DECODERS[payload.kind_of(content_type, "binary")](body)


def _sample(part: list[Any], parts: _Parts, asked: tuple[str, bytes], result: tuple[str, bytes]) -> Sample:
    reason, *own = part
    values = [
        _decoded(each[0], parts.next(each[1])) if each else _decoded(*other)
        for each, other in zip(own, (asked, result), strict=True)
    ]
    return Sample(reason, *values)
