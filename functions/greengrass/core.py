"""The agent, as V1 code reaches it from any of its threads: calls go out as frames, replies wake who waits for them.

Every call waits for its reply, so that a loop that publishes without a pause is slowed down to what the agent takes.
"""

from __future__ import annotations

import base64
import itertools
import json
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from functions import frames
from functions.errors import CodedError
from functions.secrets import CURRENT, Secrets, UnknownSecretError

MAX_UNCLAIMED: Final = 4096  # replies that nobody has asked for yet


class CallError(CodedError):
    """The agent did not do what it was asked.

    Args:
        code: as in the project's list of errors.
        message: what is wrong, and what to do.
    """

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class Result(NamedTuple):
    """What an invocation gave: its payload, and ``Handled``, ``Unhandled`` or nothing."""

    payload: bytes
    function_error: str


class _Pending:
    __slots__ = ("done", "reply")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.reply: tuple[list[Any], bytes] = ([], b"")


class Core:
    """One worker's way to the agent.

    Args:
        send: writes a frame at once; from any thread.
        secrets: the function's.
    """

    def __init__(self, send: Callable[[bytes], None], secrets: Secrets) -> None:
        self._send = send
        self._secrets = secrets
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._serving = threading.local()

    # -- for V1 code ------------------------------------------------------------------------------------------------

    def publish(self, topic: str, payload: bytes, policy: str = "") -> None:
        """Publishes along the subscriptions whose source is this function.

        Raises:
            CallError: the topic is none; or, with the policy ``AllOrError``, not all of its targets can take it.
        """
        try:
            self._asked("publish", {"topic": topic, "policy": policy}, payload)
        except CallError as error:
            if policy == "AllOrError" or error.code != "OVERLOADED":
                raise

    def invoke(self, function: str, payload: bytes, client_context: str, *, wait: bool) -> int:
        """Invokes another function; returns the number under which `result` gives its answer, where it is waited for.

        Raises:
            CallError: nobody waits for an answer, and there is no such function.
        """
        arguments = {"function": function, "context": client_context, "wait": wait}
        if not wait:
            self._asked("invoke", arguments, payload)
            return 0
        return self._ask("invoke", arguments, payload)

    def result(self, number: int) -> Result:
        """The answer to an invocation, as soon as it is there.

        Raises:
            CallError: there is no such function, or the agent refuses to wait for it.
        """
        header, body = self._reply(number)
        _, _, code, message, function_error = header
        if function_error:
            said = {"errorType": code, "errorMessage": message}
            return Result(json.dumps(said).encode(), function_error)
        if code is not None:
            raise CallError(code, message)
        return Result(body, "")

    def shadow(self, thing: str, operation: str, payload: bytes) -> bytes:
        """What the store of shadows answers; an error's ``{code, message}`` too."""
        return self._asked("shadow", {"thing": thing, "operation": operation}, payload)

    def secret(self, request: bytes) -> bytes:
        """V1's answer to ``{"SecretId", "VersionStage"}``: a version, or ``{"Status", "Message"}``."""
        try:
            asked = json.loads(request)
            found = self._secrets.get(asked["SecretId"], asked.get("VersionStage") or CURRENT)
        except UnknownSecretError as error:
            return json.dumps({"Status": 404, "Message": str(error)}).encode()
        except (ValueError, KeyError, TypeError):
            return json.dumps({"Status": 400, "Message": "The request has no SecretId"}).encode()
        value: dict[str, Any] = (
            {"SecretString": found.value}
            if isinstance(found.value, str)
            else {"SecretBinary": base64.b64encode(found.value).decode()}
        )
        said = {"ARN": found.arn, "Name": found.name, "VersionId": found.version_id, **value}
        return json.dumps({**said, "VersionStages": list(found.stages), "CreatedDate": found.created_ms}).encode()

    # -- for the worker ---------------------------------------------------------------------------------------------

    def serving(self, n: int) -> None:
        """Says which request this thread now serves; 0: none."""
        self._serving.n = n

    def replied(self, header: list[Any], body: bytes) -> None:
        """Takes a REPLY frame; from the thread that reads."""
        pending = self._pending.get(header[1])
        if pending is not None:
            pending.reply = header, body
            pending.done.set()

    def _asked(self, operation: str, arguments: dict[str, Any], body: bytes) -> bytes:
        header, said = self._reply(self._ask(operation, arguments, body))
        if header[2] is not None:
            raise CallError(header[2], header[3])
        return said

    def _ask(self, operation: str, arguments: dict[str, Any], body: bytes) -> int:
        n = next(self._numbers)
        self._pending[n] = _Pending()
        if len(self._pending) > MAX_UNCLAIMED:
            for old in list(self._pending)[: -MAX_UNCLAIMED // 2]:
                if self._pending[old].done.is_set():
                    self._pending.pop(old, None)
        self._send(frames.pack_call(n, operation, arguments, getattr(self._serving, "n", 0), body))
        return n

    def _reply(self, number: int) -> tuple[list[Any], bytes]:
        pending = self._pending.get(number)
        if pending is None:
            raise CallError("BAD_CALL", f"There is no invocation {number}, or its result was taken before.")
        pending.done.wait()
        self._pending.pop(number, None)
        return pending.reply


_current: Core | None = None


def current() -> Core:
    """This worker's core.

    Raises:
        CallError: this process is no worker with V1 code.
    """
    if _current is None:
        raise CallError("NO_CORE", "This process is no worker of a deployed function.")
    return _current


def become_current(core: Core) -> None:
    """Makes it the one that V1's modules find."""
    global _current
    _current = core
