"""What functions ask of the agent, with made-up functions, links, shadows and clock: who gets it, how it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from agent.errors import RejectedError
from agent.inference.requests import FunctionCall, Origin, Reply, Request
from agent.messages import Inbound
from agent.routing.exchange import MAX_HOPS
from agent.routing.function_calls import Callee, FunctionCalls
from tests.test_exchange import World

ARN = "arn:aws:lambda:eu-west-1:123456789012:function:"


@dataclass
class Timer:
    delay_s: float
    run: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Room(World):
    """An exchange, and what the calls of functions need beside it."""

    def __init__(self, *routes: tuple[str, str, str]) -> None:
        self.full: set[str] = set()
        self.timers: list[Timer] = []
        self.shadow_calls: list[tuple[str, str, bytes]] = []
        self.shadow_messages: list[tuple[str, bytes]] = []
        super().__init__(list(routes))
        self.calls = FunctionCalls(self.exchange, self)
        self.calls.know([Callee("a", f"{ARN}A:1"), Callee("b", f"{ARN}B:1"), Callee("c", f"{ARN}C:2", 60.0, 2)])

    def has_room(self, function: str, size: int) -> bool:
        return function not in self.full

    def later(self, delay_s: float, run: Callable[[], None]) -> Any:
        self.timers.append(Timer(delay_s, run))
        return self.timers[-1]

    def shadow(self, topic: str, payload: bytes, done: Callable[[], None]) -> None:
        self.shadow_messages.append((topic, payload))
        done()

    def shadow_call(self, thing: str, operation: str, payload: bytes, done: Callable[[bytes], None]) -> None:
        self.shadow_calls.append((thing, operation, payload))
        done(b"{}")

    def call(
        self, caller: str, what: str, body: bytes = b"{}", *, during: Request | None = None, **arguments: Any
    ) -> Asked:
        asked = Asked()
        origin = Origin(caller, "m", "sha256:00", "d1")
        self.calls.take(FunctionCall(origin, what, arguments, body, during, asked.replies.append))
        return asked


@dataclass
class Asked:
    replies: list[Reply] = field(default_factory=list)

    @property
    def code(self) -> str | None:
        [reply] = self.replies
        return reply.error.code if reply.error else None

    @property
    def told(self) -> tuple[str | None, str]:
        return self.code, self.replies[0].function_error


# -- publish ----------------------------------------------------------------------------------------------------------


def test_what_is_published_goes_along_the_subscriptions_of_its_function() -> None:
    world = Room(("function:a", "t/#", "local"), ("function:a", "t/#", "cloud"), ("function:a", "t/#", "function:b"))
    assert world.call("a", "publish", b"hello", topic="t/x").code is None
    assert world.went() == [("local", "t/x", 1), ("cloud", "t/x", 1)]
    assert world.sent[0].user == {"model": "m", "version": "sha256:00", "deployment": "d1"}
    assert [(r.function, r.topic, r.payload, r.wants_answer) for r in world.requests] == [("b", "t/x", b"hello", False)]
    assert world.call("b", "publish", topic="t/x").code is None
    assert len(world.sent) == 2, "nobody asked for what b publishes"


def test_all_or_error_reaches_all_or_nobody() -> None:
    world = Room(("function:a", "t", "local"), ("function:a", "t", "function:b"))
    world.full = {"b"}
    assert world.call("a", "publish", topic="t", policy="AllOrError").code == "OVERLOADED"
    assert (world.sent, world.requests) == ([], [])
    world.full = set()
    world.too_large = lambda out: True
    assert world.call("a", "publish", topic="t", policy="AllOrError").code == "MESSAGE_TOO_LARGE"
    assert world.requests == []
    assert world.call("a", "publish", topic="t", policy="BestEffort").code is None
    assert [r.function for r in world.requests] == ["b"]


def test_a_round_of_publishing_functions_ends() -> None:
    world = Room(("function:a", "t", "function:a"))
    assert world.call("a", "publish", topic="t").code is None
    for _ in range(MAX_HOPS + 2):
        if len(world.sent) or len(world.requests) > MAX_HOPS + 1:
            break
        world.call("a", "publish", topic="t", during=world.requests[-1])
    assert len(world.requests) == MAX_HOPS


@pytest.mark.parametrize("topic", ["", "a/#", "a/+", 5, None])
def test_what_is_no_topic_is_refused(topic: Any) -> None:
    assert Room().call("a", "publish", topic=topic).code in ("BAD_CALL", "BAD_RESULT_TOPIC")


# -- invoke -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [f"{ARN}B:1", f"{ARN}B", "b", "function:b"])
def test_a_function_is_invoked_by_each_of_its_names(name: str) -> None:
    world = Room()
    asked = world.call("a", "invoke", b"[1]", function=name, context="Y29udGV4dA==", wait=True)
    [request] = world.requests
    assert (request.function, request.payload, request.client_context) == ("b", b"[1]", "Y29udGV4dA==")
    assert request.wants_answer
    world.answer((None, b"[2]"))
    assert (asked.replies[0].body, asked.told) == (b"[2]", (None, ""))
    assert world.timers[-1].cancelled
    world.timers[-1].run()
    assert len(asked.replies) == 1


def test_an_event_is_told_taken_at_once_and_its_failure_goes_to_the_errors_topic() -> None:
    world = Room()
    asked = world.call("a", "invoke", function="b")
    assert asked.told == (None, "")
    assert not world.requests[0].wants_answer
    world.fail()
    assert [each.out.topic for each in world.sent] == ["marram/press-7/errors/b"]
    assert len(asked.replies) == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [("FUNCTION_RAISED", "Handled"), ("MY_OWN", "Handled"), ("FUNCTION_TIMEOUT", "Unhandled"),
     ("WORKER_CRASHED", "Unhandled"), ("OUT_OF_MEMORY", "Unhandled"), ("OVERLOADED", "Unhandled")],
)  # fmt: skip
def test_a_failure_says_who_found_it(code: str, kind: str) -> None:
    world = Room()
    asked = world.call("a", "invoke", function="b", wait=True)
    world.fail(code)
    assert asked.told == (code, kind)
    assert world.sent == [], "the caller is told, and nobody else"


def test_who_gives_no_answer_is_not_waited_for_for_ever() -> None:
    world = Room()
    asked = world.call("a", "invoke", function="c", wait=True)
    assert world.timers[-1].delay_s == 120
    world.timers[-1].run()
    assert asked.told == ("INVOKE_TIMEOUT", "Unhandled")
    world.answer((None, b"late"))
    assert len(asked.replies) == 1


def test_a_round_of_waiting_functions_is_refused() -> None:
    world = Room()
    world.call("x", "invoke", function="a", wait=True)
    in_a = world.requests[-1]
    world.call("a", "invoke", function="b", wait=True, during=in_a)
    in_b = world.requests[-1]
    refused = world.call("b", "invoke", function="a", wait=True, during=in_b)
    assert refused.told == ("INVOKE_CYCLE", "Unhandled")
    assert "a waits for b waits for a" in refused.replies[0].error.message  # type: ignore[union-attr]
    assert world.call("b", "invoke", function="a", during=in_b).code is None, "an event does not wait"
    assert world.call("b", "invoke", function="c", wait=True, during=in_b).replies == []


def test_a_function_with_more_processes_may_be_waited_for_twice() -> None:
    world = Room()
    world.call("x", "invoke", function="c", wait=True)
    world.call("c", "invoke", function="c", wait=True, during=world.requests[-1])
    assert world.call("c", "invoke", function="c", wait=True, during=world.requests[-1]).code == "INVOKE_CYCLE"


def test_calls_that_go_through_too_many_functions_end() -> None:
    world = Room()
    world.calls.know([Callee(f"f{n}", f"function:f{n}") for n in range(MAX_HOPS + 2)])
    asked, during = Asked(), None
    for n in range(MAX_HOPS + 2):
        asked = world.call(f"f{n}", "invoke", function=f"f{n + 1}", during=during)
        if asked.code:
            break
        during = world.requests[-1]
    assert asked.code == "TOO_MANY_HOPS"


def test_what_is_wrong_with_an_invocation_is_said() -> None:
    world = Room()
    world.calls.know([Callee("a", f"{ARN}A:1"), Callee("b", f"{ARN}A:2"), Callee("c", "function:x")])
    assert world.call("c", "invoke", function=f"{ARN}A").code == "FUNCTION_AMBIGUOUS"
    assert world.call("c", "invoke", function=f"{ARN}A:3").code == "FUNCTION_NOT_DEPLOYED"
    assert world.call("c", "invoke", function="").code == "BAD_CALL"
    assert world.call("c", "invoke", function="a", context=5).code == "BAD_CALL"
    assert world.call("c", "invoke", function="a", context="x" * 100_000).code == "BAD_CALL"
    assert world.call("c", "destroy").code == "BAD_CALL"
    assert world.requests == []


# -- shadows ----------------------------------------------------------------------------------------------------------


def test_shadows_are_asked_directly_and_by_subscriptions() -> None:
    world = Room(("function:a", "$aws/things/x/shadow/update", "GGShadowService"),
                 ("local", "$aws/things/x/shadow/update", "GGShadowService"),
                 ("GGShadowService", "$aws/things/x/shadow/update/delta", "local"))  # fmt: skip
    asked = world.call("a", "shadow", b"{}", thing="x", operation="get")
    assert (asked.replies[0].body, world.shadow_calls) == (b"{}", [("x", "get", b"{}")])
    world.call("a", "publish", b"1", topic="$aws/things/x/shadow/update")
    world.receive("$aws/things/x/shadow/update", b"2")
    assert [payload for _, payload in world.shadow_messages] == [b"1", b"2"]
    assert world.acked == [1], "a message for the shadows is acknowledged once they have it"
    with pytest.raises(RejectedError):
        world.exchange.publish("GGShadowService", Inbound("local", "a/#", b""))
