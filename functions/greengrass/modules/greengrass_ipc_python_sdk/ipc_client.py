"""V1's client of the core: work for other functions and for the core's own services, and its results."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from functions.core import CallError
from functions.greengrass import arns
from functions.greengrass.core import current

RUNTIME_ONLY: Final = "is the Lambda runtime's own; on this core the worker takes work and answers it by itself"
_local = itertools.count(1)
_answered: dict[str, bytes] = {}  # of the core's own services, until they are asked for


class IPCException(Exception):  # noqa: N818 - its name is V1's
    """What was asked could not be done."""


class WorkResult(NamedTuple):
    """What came of a piece of work; ``func_err`` is empty where it succeeded."""

    payload: bytes
    func_err: str


class IPCClient:
    """Posts work. `endpoint` and `port` are not used: the worker is connected already."""

    def __init__(self, endpoint: str = "localhost", port: int | None = None) -> None:
        self.endpoint = endpoint
        self.port = port

    def post_work(
        self, function_arn: str, input_bytes: Any, client_context: Any = b"", invocation_type: str = "RequestResponse"
    ) -> str:
        """Sends work to a function or a service; returns the id under which its result is to be had.

        Raises:
            IPCException: nobody takes it.
        """
        payload, context = _bytes(input_bytes), _text(client_context)
        if invocation_type not in ("RequestResponse", "Event"):
            raise IPCException(f"invocation type {invocation_type!r} is neither RequestResponse nor Event")
        service = _SERVICES.get(function_arn)
        try:
            if service is None:
                wait = invocation_type == "RequestResponse"
                return str(current().invoke(function_arn, payload, context, wait=wait))
            id = f"service-{next(_local)}"
            answer = service(payload, context)
            if invocation_type == "RequestResponse":
                _answered[id] = answer
            return id
        except CallError as error:
            raise IPCException(str(error)) from error

    def get_work_result(self, function_arn: str, invocation_id: str) -> WorkResult:
        """The result, as soon as it is there.

        Raises:
            IPCException: there is no such function, or it was not waited for.
        """
        if invocation_id in _answered:
            return WorkResult(_answered.pop(invocation_id), "")
        try:
            return WorkResult(*current().result(int(invocation_id))[:2])
        except (CallError, ValueError) as error:
            raise IPCException(str(error)) from error

    def get_work(self, function_arn: str) -> Any:
        """Raises IPCException: see `RUNTIME_ONLY`."""
        raise IPCException(f"get_work {RUNTIME_ONLY}")

    def post_work_result(self, function_arn: str, work_item: Any) -> None:
        """Raises IPCException: see `RUNTIME_ONLY`."""
        raise IPCException(f"post_work_result {RUNTIME_ONLY}")

    def post_handler_err(self, function_arn: str, invocation_id: str, error_bytes: Any) -> None:
        """Raises IPCException: see `RUNTIME_ONLY`."""
        raise IPCException(f"post_handler_err {RUNTIME_ONLY}")

    def put_initialization_result(self, error: str | None = None) -> None:
        """Does nothing: the worker says by itself when it is ready."""


def _publish(payload: bytes, context: str) -> bytes:
    custom = _custom(context)
    current().publish(str(custom.get("subject", "")), payload, str(custom.get("queueFullPolicy") or ""))
    return b""


def _shadow(payload: bytes, context: str) -> bytes:
    parts = str(_custom(context).get("subject", "")).split("/")
    if len(parts) != 5:
        raise IPCException("the subject is no topic of a shadow: $aws/things/NAME/shadow/OPERATION")
    return current().shadow(parts[2], parts[4], payload)


def _secret(payload: bytes, context: str) -> bytes:
    return current().secret(payload)


_SERVICES: Final[dict[str, Callable[[bytes, str], bytes]]] = {
    arns.ROUTER: _publish,
    arns.SHADOWS: _shadow,
    arns.SECRETS: _secret,
}


def _custom(context: str) -> dict[str, Any]:
    try:
        custom = json.loads(base64.b64decode(context))["custom"]
    except (ValueError, KeyError, TypeError):
        custom = None
    if not isinstance(custom, dict):
        raise IPCException("the client context has no custom values")
    return custom


def _bytes(payload: Any) -> bytes:
    """A payload's bytes; texts and files are taken too, as V1 did."""
    if hasattr(payload, "read"):
        payload = payload.read()
    if isinstance(payload, str):
        return payload.encode()
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return bytes(payload)
    raise TypeError(f"a payload is bytes, a text or a file, not {type(payload).__name__}: use json.dumps")


def _text(context: Any) -> str:
    return context.decode() if isinstance(context, (bytes, bytearray)) else str(context or "")
