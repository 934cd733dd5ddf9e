"""What a handler may ask of the agent through its context: to publish at once, to invoke another function, shadows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from functions import payload
from functions.errors import CodedError, RequestError

if TYPE_CHECKING:
    from functions.core import Core


class InvokeError(CodedError):
    """The function that was invoked failed, or could not be invoked.

    Attributes:
        handled: whether the function itself said so, rather than the agent.
    """

    handled = False

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class ShadowError(Exception):
    """A shadow's request was refused; `code` is AWS's: 400, 404, 409, 413, 429."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Asker(NamedTuple):
    """The agent, as one request's context reaches it.

    Attributes:
        n: the request's number on the worker's connection.
        kind: the content type of what has none of its own.
    """

    core: Core
    n: int
    kind: str

    def publish(self, topic: str, value: Any, content_type: str | None) -> None:
        """See `Context.publish_now`."""
        kind, body = payload.encode_as(value, content_type) if content_type else payload.encode(value, self.kind)
        self.core.serving(self.n)
        try:
            self.core.publish(topic, body, "AllOrError", kind)
        finally:
            self.core.serving(0)

    def invoke(self, function: str, value: Any, *, wait: bool) -> Any:
        """See `Context.invoke`."""
        kind, body = payload.encode(value, self.kind)
        self.core.serving(self.n)
        try:
            number = self.core.invoke(function, body, "", wait=wait, content_type=kind)
            return _answer(*self.core.result(number)) if wait else None
        except CodedError as error:
            raise error if isinstance(error, (InvokeError, RequestError)) else _failed(error) from error
        finally:
            self.core.serving(0)


def _failed(error: CodedError) -> InvokeError:
    return InvokeError(error.code, error.message)


def _answer(body: bytes, function_error: str, content_type: str | None) -> Any:
    if function_error:
        told = json.loads(body)
        error = InvokeError(told["errorType"], told["errorMessage"])
        error.handled = function_error == "Handled"
        raise error
    return payload.DECODERS[payload.kind_of(content_type, "binary")](body)


class ShadowOf:
    """The shadow of a thing, kept by this core.

    Example::

        pump = context.shadow("pump")
        pump.update(desired={"on": True})
        wanted = pump.get()["state"].get("delta")
    """

    def __init__(self, core: Core, thing: str) -> None:
        self._core = core
        self._thing = thing

    def get(self) -> dict[str, Any]:
        """Its ``state`` (``desired``, ``reported``, ``delta``), ``metadata`` and ``version``.

        Raises:
            ShadowError: 404, there is none.
        """
        return self._ask("get", b"")

    def update(self, *, version: int | None = None, **sections: dict[str, Any] | None) -> dict[str, Any]:
        """Changes ``desired``, ``reported`` or both: None as a value takes a key away, None as a section all of it.

        Args:
            version: the only one that may be changed; None: any.

        Raises:
            ShadowError: 400, 409 (another version), 413.
        """
        wanted: dict[str, Any] = {"state": sections}
        if version is not None:
            wanted["version"] = version
        return self._ask("update", payload.encode(wanted, payload.JSON)[1])

    def delete(self) -> dict[str, Any]:
        """Removes it; its version goes on where it was, should it come back.

        Raises:
            ShadowError: 404.
        """
        return self._ask("delete", b"")

    def _ask(self, operation: str, body: bytes) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self._core.shadow(self._thing, operation, body))
        if "code" in said and "message" in said:
            raise ShadowError(said["code"], said["message"])
        return said
