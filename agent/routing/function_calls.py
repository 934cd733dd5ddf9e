"""What functions ask of the agent while they run: to publish, to invoke one another, to read and change shadows. Pure.

Calls from function to function never go through a broker. Each has a deadline, so that functions which wait for one
another in a round end with errors and not never; a round that can be seen is refused at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import field
from typing import Any, Final, Protocol

from agent.errors import AgentError, FunctionError, RejectedError
from agent.inference.requests import FunctionCall, Origin, Reply, Request
from agent.messages import Inbound, Properties
from agent.routing.answers import provenance
from agent.routing.exchange import MAX_HOPS, Exchange
from agent.routing.subscriptions import FUNCTION
from agent.values import dataclass

SHORTEST_WAIT_S: Final = 30.0
QUEUED_TIMEOUTS: Final = 2  # an invocation may wait for as long as its function may take, and then take it
MAX_CONTEXT: Final = 64 * 1024  # characters of a client context
ALL_OR_ERROR: Final = "AllOrError"
# Failures that the function itself reports; all others are found by the agent (AWS Lambda: Handled and Unhandled).
FOUND: Final = re.compile(
    r"FUNCTION_TIMEOUT|OUT_OF_MEMORY|WORKER_.*|FUNCTION_FAILED|OVERLOADED|EXPIRED|STOPPED|DISCARDED|DRAIN_TIMEOUT"
)


@dataclass(frozen=True, slots=True)
class Callee:
    """A function as others may call it.

    Attributes:
        arn: FunctionArn as the document has it.
        timeout_s: for one request.
        processes: how many requests it serves at once.
    """

    id: str
    arn: str
    timeout_s: float = 3.0
    processes: int = 1


class Ports(Protocol):
    def now(self) -> float: ...
    def later(self, delay_s: float, run: Callable[[], None]) -> Any: ...
    def shadow_call(self, thing: str, operation: str, payload: bytes, done: Callable[[bytes], None]) -> None:
        """Asks the store of shadows; `done` gets what it answers, once, on the loop's thread."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """An invocation that a function waits for."""

    caller: str
    callee: str
    during: Request | None
    timer: Any = None


@dataclass(slots=True)
class FunctionCalls:
    """Takes the calls of all workers.

    Args:
        exchange: carries them on.
        ports: time and shadows.
    """

    exchange: Exchange
    ports: Ports
    _callees: tuple[Callee, ...] = ()
    _waiting: dict[int, _Waiting] = field(default_factory=dict)
    _numbers: int = 0

    def know(self, callees: Iterable[Callee]) -> None:
        """Says which functions there are now."""
        self._callees = tuple(callees)

    def take(self, call: FunctionCall) -> None:
        """Sees to a call, and to its reply."""
        try:
            if call.operation == "publish":
                self._publish(call)
            elif call.operation == "invoke":
                self._invoke(call)
            elif call.operation == "shadow":
                self._shadow(call)
            else:
                raise _bad(f"there is no operation {call.operation!r}")
        except AgentError as error:
            call.reply(Reply(error=error))

    # -- publish ----------------------------------------------------------------------------------------------------

    def _publish(self, call: FunctionCall) -> None:
        topic = _text(call, "topic")
        properties = Properties(content_type=_content_type(call), user=_user(call.origin))
        message = Inbound("local", topic, call.body, qos=1, properties=properties, received_s=self.ports.now())
        strict = call.arguments.get("policy") == ALL_OR_ERROR
        hops = self.exchange.hops_of(call.during)
        self.exchange.publish(FUNCTION + call.origin.function, message, hops=hops - 1, strict=strict)
        call.reply(Reply())

    # -- invoke -----------------------------------------------------------------------------------------------------

    def _invoke(self, call: FunctionCall) -> None:
        callee = self._callee(_text(call, "function"))
        context = call.arguments.get("context") or ""
        if not isinstance(context, str) or len(context) > MAX_CONTEXT:
            raise _bad(f"a client context is a text of at most {MAX_CONTEXT} characters")
        hops = self.exchange.hops_of(call.during)
        if hops >= MAX_HOPS:
            raise FunctionError("TOO_MANY_HOPS", f"A call went through {MAX_HOPS} functions.", "Take the round out.")
        properties, topic = Properties(content_type=_content_type(call)), f"invoke/{callee.id}"
        message = Inbound("local", topic, call.body, qos=1, properties=properties, received_s=self.ports.now())
        if call.arguments.get("wait"):
            self._wait_for(call, callee, message, context, hops)
            return
        self.exchange.call(callee.id, message, context, hops=hops, respond=None, failed=None)
        call.reply(Reply())

    def _wait_for(self, call: FunctionCall, callee: Callee, message: Inbound, context: str, hops: int) -> None:
        held = self._held_up(call.origin.function, call.during)
        if sum(each == callee.id for each in held) >= callee.processes:
            way = " waits for ".join([callee.id, *reversed(held[: held.index(callee.id)]), callee.id])
            text = f"The call would wait for itself: {way}."
            error = FunctionError("INVOKE_CYCLE", text, "Invoke it as an Event, or give the function more Processes.")
            call.reply(_failed(error))
            return
        self._numbers += 1
        n, waiting = self._numbers, _Waiting(call.origin.function, callee.id, call.during)
        self._waiting[n] = waiting

        def settle(reply: Reply) -> None:
            if self._waiting.pop(n, None) is not None:
                waiting.timer.cancel()
                call.reply(reply)

        def late() -> None:
            text = f"Function {callee.id} gave no answer within {wait_s:g} s."
            settle(_failed(FunctionError("INVOKE_TIMEOUT", text, "See whether it has too much to do.")))

        wait_s = max(SHORTEST_WAIT_S, QUEUED_TIMEOUTS * callee.timeout_s)
        waiting.timer = self.ports.later(wait_s, late)
        self.exchange.call(
            callee.id, message, context, hops=hops,
            respond=lambda content_type, payload: settle(Reply(payload, content_type=content_type)),
            failed=lambda error: settle(_failed(error)),
        )  # fmt: skip

    def _held_up(self, function: str, during: Request | None) -> list[str]:
        """The functions of which a worker waits for this call, the nearest first."""
        if during is None:
            return []  # a thread of its own: its worker goes on serving
        held = [function]
        for each in reversed(list(self._waiting.values())):
            if each.callee == held[-1] and each.during is not None:
                held.append(each.caller)
        return held

    def _callee(self, name: str) -> Callee:
        """The function that a name means: an ARN, with or without its qualifier, or an Id."""
        found = [c for c in self._callees if name in (c.arn, c.id, FUNCTION + c.id)]
        found = found or [c for c in self._callees if _unqualified(c.arn) == name]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(c.id for c in found)
            raise FunctionError("FUNCTION_AMBIGUOUS", f"Several functions have the ARN {name}: {ids}.", "Use an Id.")
        raise FunctionError(
            "FUNCTION_NOT_DEPLOYED",
            f"No function {name!r} is deployed on this core.",
            "Deploy a group that has it; connectors are not run here.",
        )

    # -- shadows ----------------------------------------------------------------------------------------------------

    def _shadow(self, call: FunctionCall) -> None:
        thing, operation = _text(call, "thing"), _text(call, "operation")
        self.ports.shadow_call(thing, operation, call.body, lambda payload: call.reply(Reply(payload)))


def _failed(error: AgentError) -> Reply:
    """An invocation that failed, as AWS Lambda tells it."""
    kind = "Unhandled" if FOUND.fullmatch(error.code) or error.code.startswith("INVOKE_") else "Handled"
    return Reply(error=error, function_error=kind)


def _unqualified(arn: str) -> str:
    return ":".join(arn.split(":")[:7])


def _user(origin: Origin) -> tuple[tuple[str, str], ...]:
    """Where it comes from, without a request: it need not be made in one."""
    return tuple(pair for pair in provenance("", origin) if pair[0] != "request")


def _text(call: FunctionCall, name: str) -> str:
    value = call.arguments.get(name)
    if not isinstance(value, str) or not value:
        raise _bad(f"{name} must be a text, not {value!r}")
    return value


def _content_type(call: FunctionCall) -> str | None:
    value = call.arguments.get("content_type")
    if value is not None and not isinstance(value, str):
        raise _bad("content_type is no text")
    return value


def _bad(why: str) -> RejectedError:
    return RejectedError("BAD_CALL", f"A function's call cannot be understood: {why}.", "")
