"""What a request says about itself, and the frames that answer it. No socket, no clock: frames in, frames out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from functions import frames, payload
from functions.config import Config
from functions.errors import RequestError
from functions.loading import told
from functions.sdk import AS_IT_IS, Context, Given, Kept, Result

MAX_TEXT: Final = 1024  # characters of an id or topic that a payload names; an MQTT string has 65,535 bytes at most
_MAX_KINDS: Final = 64  # content types that are remembered; senders choose them
_JSON: Final = payload.JSON
_dumps, _plain, _OPTION = payload.quick_dumps, payload.plain, payload.OPTION
_MAX_SHORT_TEXT: Final = frames.MAX_SHORT_TEXT
_JOINED_BYTES: Final = frames.JOINED_BYTES
_pack_json_result: Final = frames.pack_json_result
_META: Final = b',"meta":{"request":'


class Call(Context):
    """A request on its way. What its handler may know of it is its `Context`, which is the same object.

    Attributes:
        event: what the handler gets, once it is decoded.
        reply_to: where its payload wants the answer.
        refused: why it cannot be served; None: it can.
        settled: whether it is answered while its handler still runs.
        timer: what cancels it in time.
    """

    __slots__ = ("event",)

    event: Any
    reply_to: str | None = None
    refused: BaseException | None = None
    settled = False
    timer: Any = None

    @property
    def wanted(self) -> bool:
        """Whether its sender waits for an answer, result or none."""
        return bool(self._header[5])

    @property
    def client_context(self) -> str | None:
        """Base64 of JSON, or empty, where another function invoked this one; else None."""
        return self._header[6] if len(self._header) > 6 else None

    def refuse(self, error: BaseException) -> None:
        """Says why it cannot be served."""
        self.refused = error
        self.unusual = True


_new_call: Final = Call.__new__  # its attributes are set where they are known: no step of Python for an `__init__`


class Calls:
    """Opens the requests of one function and makes the frames that answer them.

    A worker that is asked now and then has its code and data out of the processor's caches each time, so that each step
    of Python and each object counts: the common case of both ways is one function here, with all others behind it.

    Args:
        given: what the function has, for its requests' contexts.
    """

    def __init__(self, config: Config, given: Given) -> None:
        self._config = config
        self._endpoint = config.endpoint
        self._meta = config.meta
        self.given = given
        self._origin = _origin(config)
        self._meta_end = _meta_end(self._origin)
        self._kinds: dict[str | None, tuple[str, Callable[[bytes], Any]]] = {}

    def received(self, frame: frames.Frame) -> Call:
        """The request in a frame, with its event and what that says about its id and answer; or `refused`."""
        header, body = frame
        call = _new_call(Call)
        call._given = self.given
        call._header = header
        call.request = header[4]
        call.content_type, decode = self._kinds.get(header[3]) or self._kind(header[3])
        call.unusual = False
        try:
            event = call.event = decode(body)
            if type(event) is dict and (self._endpoint or "meta" in event):
                self._identify(call, event)
        except (ValueError, RecursionError):
            self._read_again(call, body)
        except BaseException as error:
            call.refuse(error)
        return call

    def _kind(self, content_type: str | None) -> tuple[str, Callable[[bytes], Any]]:
        kind = payload.kind_of(content_type, self._config.encoding)
        if self._config.endpoint and kind == payload.BINARY:
            kind = payload.MSGPACK  # its protocol has no plain bytes
        found = kind, payload.QUICK_DECODERS[kind]
        if len(self._kinds) < _MAX_KINDS:
            self._kinds[content_type] = found
        return found

    def _read_again(self, call: Call, body: bytes) -> None:
        """Has the judge look at what the quick decoder refused."""
        try:
            event = call.event = payload.DECODERS[call.content_type](body)
            if type(event) is dict:
                self._identify(call, event)
        except BaseException as error:
            call.refuse(error)

    def _identify(self, call: Call, event: dict[str, Any]) -> None:
        """The request's own id, ``meta.id`` before the endpoint protocol's, and where it wants its answer.

        Raises:
            RequestError: BAD_PAYLOAD.
        """
        own = None
        meta = event.get("meta")
        if type(meta) is dict:
            own = meta.get("id")
            reply_to = meta.get("reply_to")
            if reply_to is not None:
                call.reply_to = _text("meta.reply_to", reply_to)
                call.unusual = True
        if own is None and self._endpoint:
            own = event.get("id")
        if own is not None:
            call.request = str(own) if type(own) is int else _text("The request's id", own)

    def answer(self, call: Call, result: Any) -> list[frames.Buffer]:
        """The frame for what a handler returned and published, a RESULT or JSON_RESULT.

        Raises:
            RequestError: RESULT_NOT_ENCODABLE.
        """
        if (
            type(result) is not dict
            or call.unusual
            or call.content_type != _JSON
            or (self._meta and ("meta" in result or not result))
        ):
            return self._answer(call, result)
        try:
            body = _dumps(result, _plain, _OPTION)
            if self._meta:
                body = b"".join((body[:-1], _META, _dumps(call.request), self._meta_end))
            request = call.request.encode()
        except (TypeError, ValueError, OverflowError, RecursionError):
            return self._answer(call, result)
        if b"null" in body or len(request) > _MAX_SHORT_TEXT or len(body) > _JOINED_BYTES:
            return self._answer(call, result)
        return [_pack_json_result(call._header[1], request, body)]

    def _answer(self, call: Call, result: Any) -> list[frames.Buffer]:
        """Any RESULT frame, whatever is in it."""
        meta = {"request": call.request, **self._origin}
        layout: list[list[Any]] = []
        bodies: list[bytes] = []
        plain = None
        if result is None:
            if call.wanted or call.reply_to is not None:
                plain = payload.encode(
                    {"meta": meta}, call.content_type if call.content_type == payload.MSGPACK else payload.JSON
                )
        else:
            for output in result if _is_several(result) else (result,):
                self._encode(output, call.content_type, meta, layout, bodies)
        for output in call.published or ():
            self._encode(output, call.content_type, meta, layout, bodies)
        answer = None
        if plain is not None:
            answer = [plain[0], len(plain[1])]
            bodies.append(plain[1])
        header = [frames.RESULT, call.n, call.request, call.reply_to, layout, answer]
        if call.kept is not None:
            header.append([_sampled(kept, call.content_type, bodies) for kept in call.kept])
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


def _meta_end(origin: Mapping[str, str]) -> bytes:
    """The JSON of ``meta`` after its request, and the end of the object that it stands in."""
    _, text = payload.encode(origin, payload.JSON)
    return (b"," if origin else b"") + text[1:] + b"}"


def _is_several(result: Any) -> bool:
    """Whether it is a list of nothing but `Result`; any other list is one result."""
    return type(result) is list and bool(result) and all(type(each) is Result for each in result)
