"""The agent, as a function reaches it from any of its threads: calls go out as frames, replies wake who waits for them.

Every call waits for its reply, so that a loop that publishes without a pause is slowed down to what the agent takes.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from functions import frames
from functions.errors import CodedError

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
    content_type: str | None = None


class _Pending:
    __slots__ = ("done", "reply")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.reply: tuple[list[Any], bytes] = ([], b"")


class Core:
    """One worker's way to the agent.

    Args:
        send: writes a frame at once; from any thread.
        wait: returns when its event is set.
    """

    def __init__(self, send: Callable[[bytes], None], wait: Callable[[threading.Event], object]) -> None:
        self._send = send
        self._wait = wait
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._serving = threading.local()

    # -- for functions ----------------------------------------------------------------------------------------------

    def publish(self, topic: str, payload: bytes, policy: str = "", content_type: str | None = None) -> None:
        """Publishes along the subscriptions whose source is this function.

        Raises:
            CallError: the topic is none; or, with the policy ``AllOrError``, not all of its targets can take it.
        """
        try:
            self._asked("publish", {"topic": topic, "policy": policy, "content_type": content_type}, payload)
        except CallError as error:
            if policy == "AllOrError" or error.code != "OVERLOADED":
                raise

    def invoke(
        self, function: str, payload: bytes, client_context: str, *, wait: bool, content_type: str | None = None
    ) -> int:
        """Invokes another function; returns the number under which `result` gives its answer, where it is waited for.

        Raises:
            CallError: nobody waits for an answer, and there is no such function.
        """
        arguments = {"function": function, "context": client_context, "wait": wait, "content_type": content_type}
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
        _, _, code, message, function_error, content_type = header
        if function_error:
            said = {"errorType": code, "errorMessage": message}
            return Result(json.dumps(said).encode(), function_error)
        if code is not None:
            raise CallError(code, message)
        return Result(body, "", content_type)

    def shadow(self, thing: str, operation: str, payload: bytes) -> bytes:
        """What the store of shadows answers; an error's ``{code, message}`` too."""
        return self._asked("shadow", {"thing": thing, "operation": operation}, payload)

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
        self._wait(pending.done)
        if not pending.done.is_set():
            raise CallError("STOPPED", "The agent has ended, or ends this worker.")
        self._pending.pop(number, None)
        return pending.reply
