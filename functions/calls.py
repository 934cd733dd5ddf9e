"""What a request says about itself, and the frames that answer it. No socket, no clock: frames in, frames out."""

from __future__ import annotations

from typing import Any, Final

from functions import frames, payload
from functions.config import Config
from functions.errors import RequestError
from functions.loading import told
from functions.sdk import AS_IT_IS, Context, Kept, Result

MAX_TEXT: Final = 1024  # characters of an id or topic that a payload names; an MQTT string has 65,535 bytes at most
_MAX_KINDS: Final = 64  # content types that are remembered; senders choose them


class Call:
    """A request on its way.

    Attributes:
        n: its number on this connection.
        kind: how its event and its answer are encoded.
        request: its id.
        wanted: whether its sender waits for an answer, result or none.
        event: what the handler gets, once it is decoded.
        context: of its last run.
        client_context: base64 of JSON, or empty, where another function invoked this one; else None.
        settled: whether it is answered while its handler still runs.
        timer: what cancels it in time.
    """

    __slots__ = (
        "client_context",
        "context",
        "event",
        "kind",
        "n",
        "reply_to",
        "request",
        "settled",
        "timer",
        "topic",
        "wanted",
    )

    def __init__(self, n: int, topic: str, kind: str, request: str, wanted: bool) -> None:
        self.n = n
        self.topic = topic
        self.kind = kind
        self.request = request
        self.wanted = wanted
        self.reply_to: str | None = None
        self.event: Any = None
        self.context: Context | None = None
        self.client_context: str | None = None
        self.settled = False
        self.timer: Any = None


class Calls:
    """Opens the requests of one function and makes the frames that answer them."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._origin = _origin(config)
        self._kinds: dict[str | None, str] = {}

    def received(self, frame: frames.Frame) -> Call:
        """The request in a frame, its event not decoded yet."""
        _, n, topic, content_type, fallback, wanted, *invoked = frame[0]
        call = Call(n, topic, self._kinds.get(content_type) or self._kind(content_type), fallback, wanted)
        if invoked:
            call.client_context = invoked[0]
        return call

    def _kind(self, content_type: str | None) -> str:
        kind = payload.kind_of(content_type, self._config.encoding)
        if self._config.endpoint and kind == payload.BINARY:
            kind = payload.MSGPACK  # its protocol has no plain bytes
        if len(self._kinds) < _MAX_KINDS:
            self._kinds[content_type] = kind
        return kind

    def decode(self, call: Call, body: bytes) -> None:
        """Sets the call's event, and what the event says about its id and answer.

        Raises:
            RequestError: BAD_PAYLOAD.
        """
        event = call.event = payload.DECODERS[call.kind](body)
        if type(event) is dict:
            self._identify(call, event)

    def _identify(self, call: Call, event: dict[str, Any]) -> None:
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

    def answer(self, call: Call, result: Any) -> list[frames.Buffer]:
        """The RESULT frame for what a handler returned and published.

        Raises:
            RequestError: RESULT_NOT_ENCODABLE.
        """
        published = call.context.published if call.context is not None else None
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
        header = [frames.RESULT, call.n, call.request, call.reply_to, layout, answer]
        if call.context is not None and call.context.kept is not None:
            header.append([_sampled(kept, call.kind, bodies) for kept in call.context.kept])
        return frames.pack(header, *bodies)

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

    def failure(self, call: Call, error: BaseException) -> list[frames.Buffer]:
        """The ERROR frame for what was raised."""
        if isinstance(error, RequestError):
            code, message = error.code, error.message
        elif isinstance(error, MemoryError):
            code, message = "OUT_OF_MEMORY", f"The function {self._config.function} ran out of memory."
        else:
            code, message = "FUNCTION_RAISED", told(error, self._config.code)
        return frames.pack([frames.ERROR, call.n, call.request, call.reply_to, code, _sendable(message)])


def _sampled(kept: Kept, kind: str, bodies: list[bytes]) -> list[Any]:
    """A sample's part of a RESULT; what it holds of its own is appended to the bodies."""
    parts: list[Any] = [kept.reason]
    for value in (kept.input, kept.output):
        part = None
        if value is not AS_IT_IS:
            content_type, body = payload.encode(value, kind)
            bodies.append(body)
            part = [content_type, len(body)]
        parts.append(part)
    return parts


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
