"""The way of a message through the exchange, with made-up links, spool and functions: what goes where, how often."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest

from agent.capture.budget import Budget
from agent.capture.keeper import Keeper
from agent.capture.policy import Capture, Random
from agent.capture.samples import Sample
from agent.capture.settled import Hold, Settled
from agent.errors import FunctionError, RejectedError
from agent.inference.requests import Answer, Failure, Kept, Origin, Request
from agent.messages import BINARY, JSON, MSGPACK, Inbound, Outbound, Properties
from agent.routing.deliveries import Deliveries, Delivery
from agent.routing.exchange import MAX_HOPS, Exchange
from agent.routing.outcomes import FunctionTraits
from agent.routing.subscriptions import Subscriptions
from agent.settings import AnswerLimits, Subscription, Topics

TOPICS = Topics(
    deployments="marram/press-7/deployments",
    deployment_status="marram/press-7/deployments/{deployment}/status",
    state="marram/press-7/state",
    capture="marram/press-7/capture/{function}",
    errors="marram/press-7/errors/{function}",
)
# Exchange._run counts each target as open, and _send counts a link target once more; that one is never released. On a
# core, what goes from link to link stays in the inbox and is sent again at every start.
MODEL = {"model": "m", "version": "sha256:00", "deployment": "d1"}


@dataclass
class Sent:
    """What went out on a link, and how to say that the broker has it."""

    link: str
    kind: str
    out: Outbound
    done: Callable[[], None]

    @property
    def json(self) -> Any:
        return json.loads(self.out.payload)

    @property
    def user(self) -> dict[str, str]:
        return dict(self.out.properties.user)


@dataclass
class World:
    """All ports of an exchange: whoever is asked only notes it."""

    routes: list[tuple[str, str, str]]
    traits: dict[str, FunctionTraits] = field(default_factory=dict)
    one_link: bool = False
    captured: float | None = None  # the rate of f's samples
    remembered: AnswerLimits = field(default_factory=AnswerLimits)

    def __post_init__(self) -> None:
        self.time = 7.0
        self.sent: list[Sent] = []
        self.requests: list[Request] = []
        self.acked: list[int] = []
        self.chance = 0.5
        self.too_large: Callable[[Outbound], bool] = lambda out: False
        self._tickets = itertools.count(1)
        self.exchange = Exchange("press-7", TOPICS, Deliveries(self), self, "boot", self.remembered)
        self.exchange.subscriptions = Subscriptions([Subscription(*route) for route in self.routes])
        self.exchange.traits = self.traits
        self.exchange.one_link = self.one_link
        self.keeper = Keeper(TOPICS.capture, JSON, Budget(None), _CapturePorts(self))
        if self.captured is not None:
            self.keeper.use({"f": (Capture(Random(self.captured)), None)})
            self.exchange.traits = {"f": FunctionTraits(captured=True), **self.traits}

    # the ports
    def ack_on(self, link: str) -> Callable[[int, Delivery], None]:
        return lambda ticket, _: self.acked.append(ticket)

    def window(self, link: str) -> int:
        return 100

    def put_inbox(self, delivery: Delivery, committed: Callable[[], None]) -> None:
        raise AssertionError("nothing waits long enough here")

    def drop_inbox(self, key: str) -> None: ...

    def later(self, delay_s: float, run: Callable[[], None]) -> None: ...

    def keeps_up(self) -> bool:
        return True

    def crowded(self, delivery: Delivery) -> bool:
        return False

    def now(self) -> float:
        return self.time

    def submit(self, request: Request) -> None:
        self.requests.append(request)

    def ready(self, function: str) -> bool:
        return True

    def send(self, link: str, kind: str, out: Outbound, done: Callable[[], None]) -> None:
        if self.too_large(out):
            raise RejectedError("MESSAGE_TOO_LARGE", "Too large for this broker.", "Send less.")
        self.sent.append(Sent(link, kind, out, done))

    def capture(self, settled: Settled, hold: Hold) -> None:
        self.keeper.consider(settled, hold)

    # what a test does
    def receive(self, topic: str, payload: bytes = b"{}", link: str = "local", qos: int = 1, **properties: Any) -> None:
        ticket = next(self._tickets) if qos else 0
        dup, received_s = properties.pop("dup", False), properties.pop("received_s", self.time)
        properties_ = Properties(**properties)
        self.exchange.receive(Inbound(link, topic, payload, qos, False, dup, properties_, ticket, received_s))

    def answer(
        self,
        *outputs: Any,
        reply_to: str | None = None,
        answer: Any = None,
        request: int = -1,
        kept: Sequence[Kept] = (),
    ) -> None:
        """The function gives these outputs, (topic, payload) each."""
        asked = self.requests[request]
        made = [(topic, kind_of(payload), payload) for topic, payload in outputs]
        plain = (JSON, answer) if answer is not None else None
        origin = Origin(asked.function, **MODEL)
        asked.settle(asked, Answer(origin, asked.id, reply_to, made, plain, kept))

    def fail(self, code: str = "FUNCTION_RAISED", *, id: str | None = None, reply_to: str | None = None) -> None:
        asked = self.requests[-1]
        error = FunctionError(code, "It did not work.", "Try another.")
        asked.settle(asked, Failure(Origin(asked.function, **MODEL), error, id, reply_to))

    def went(self) -> list[tuple[str, str, int]]:
        return [(each.link, each.out.topic, each.out.qos) for each in self.sent]

    def hand_over(self) -> None:
        """The brokers acknowledge all that was sent."""
        for each in self.sent:
            each.done()


class _CapturePorts:
    """The keeper's ports: its samples go out as all else does."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now = self.clock = world.now

    def random(self) -> float:
        return self.world.chance

    def timestamp(self) -> str:
        return "2026-11-23T06:00:00.000Z"

    def most_bytes(self) -> int:
        return 1000

    def send(self, out: Outbound, value: float, done: Callable[[], None]) -> None:
        self.world.send("cloud", "capture", out, done)

    def spill(self, sample: Sample, done: Callable[[], None]) -> str | None:
        return "too_large"


def kind_of(payload: bytes) -> str:
    return JSON if payload[:1] in (b"{", b"[") else BINARY


F = ("local", "s/+", "function:f")


def test_one_message_goes_to_all_its_targets_and_is_acknowledged_when_all_are_done() -> None:
    world = World([F, ("local", "s/#", "function:g"), ("local", "s/a", "cloud"), ("local", "+/a", "function:f")])
    world.receive("s/a", b'{"x": 1}')
    assert sorted(r.function for r in world.requests) == ["f", "g"], "once for each, however many filters match"
    assert world.went() == [("cloud", "s/a", 1)]
    world.answer((None, b"{}"), request=0)
    world.answer(request=1)
    assert world.acked == []
    world.hand_over()
    assert world.acked == [1]


def test_what_nobody_asked_for_is_acknowledged_at_once() -> None:
    world = World([F])
    world.receive("elsewhere")
    assert (world.acked, world.requests, world.sent) == ([1], [], [])


def test_a_result_goes_along_the_functions_own_subscriptions() -> None:
    world = World([F, ("function:f", "s/+/f", "local"), ("function:f", "#", "cloud"), ("function:g", "#", "local")])
    world.receive("s/a", qos=0)
    world.answer((None, b'{"y": 1}'), ("alarms", b"!"))
    assert world.went() == [("cloud", "s/a/f", 1), ("local", "s/a/f", 0), ("cloud", "alarms", 1)]
    assert world.sent[0].out.properties.content_type == JSON
    assert world.sent[2].out.properties.content_type == BINARY
    request = world.requests[0].id
    assert world.sent[0].user == {"request": request, **MODEL, "id": f"{request}-f-1"}
    assert world.sent[2].user["id"] == f"{request}-f-2"
    assert "id" not in world.sent[1].user


@pytest.mark.parametrize("qos", [0, 1])
def test_to_the_cloud_all_goes_at_qos_1_and_to_devices_as_it_came(qos: int) -> None:
    world = World([F, ("local", "s/+", "cloud"), ("function:f", "#", "local"), ("function:f", "#", "cloud")])
    world.receive("s/a", qos=qos, response_topic="r")
    world.answer((None, b"{}"))
    went = [("cloud", "s/a", 1), ("local", "s/a/f", qos), ("cloud", "s/a/f", 1), ("local", "r", qos)]
    assert sorted(world.went()) == sorted(went)


def test_a_message_is_forwarded_with_what_it_said_but_who_sent_it() -> None:
    world = World([("cloud", "c/#", "local")])
    user = (("core", "press-8"), ("a", "b"))
    world.receive("c/1", b"x", "cloud", content_type="t", response_topic="r", correlation=b"c", expiry_s=9, user=user)
    (sent,) = world.sent
    assert (sent.link, sent.out.payload, sent.out.qos) == ("local", b"x", 1)
    assert sent.out.properties == Properties("t", "r", b"c", 9, (("a", "b"),))


def test_a_function_feeds_another_without_a_broker() -> None:
    world = World([F, ("function:f", "s/+/f", "function:g"), ("function:g", "#", "local")])
    world.receive("s/a", b"{}", response_topic="r", correlation=b"c1", expiry_s=5)
    first = world.requests[0]
    assert (first.id, first.wants_answer, first.expires_s) == ("c1", True, 12.0)
    world.answer((None, b'{"y": 1}'))
    second = world.requests[1]
    assert (second.function, second.topic, second.payload, second.content_type) == ("g", "s/a/f", b'{"y": 1}', JSON)
    assert (second.wants_answer, second.expires_s) == (False, 12.0), "only the first function answers the requester"
    world.answer((None, b'{"z": 2}'), reply_to="somewhere")
    assert world.went() == [("local", "r", 1), ("local", "s/a/f/g", 1)]
    assert world.acked == []
    world.hand_over()
    assert world.acked == [1]


def test_a_round_of_functions_ends_with_an_error() -> None:
    world = World([F, ("function:f", "#", "function:f")])
    world.receive("s/a")
    for _ in range(MAX_HOPS + 1):
        world.answer(("again", b"{}"))
    assert len(world.requests) == MAX_HOPS + 1
    (sent,) = world.sent
    assert (sent.out.topic, sent.json["error"]["code"]) == ("marram/press-7/errors/f", "TOO_MANY_HOPS")
    world.hand_over()
    assert world.acked == [1]


# -- answers ----------------------------------------------------------------------------------------------------------


def test_a_requester_gets_the_first_result_with_its_correlation_on_its_link() -> None:
    world = World([("cloud", "s/+", "function:f")])
    world.receive("s/a", link="cloud", response_topic="r/1", correlation=b"\xff\x00")
    assert world.requests[0].id == "ff00"
    world.answer((None, b'{"y": 1}'), ("b", b'{"y": 2}'))
    (sent,) = world.sent
    assert (sent.link, sent.kind, sent.out.topic, sent.json) == ("cloud", "result", "r/1", {"y": 1})
    assert sent.out.properties.correlation == b"\xff\x00"
    assert sent.user == {"request": "ff00", **MODEL}


def test_the_response_topic_wins_over_the_payloads_reply_to() -> None:
    world = World([F])
    world.receive("s/a", response_topic="by/mqtt")
    world.answer((None, b"{}"), reply_to="by/payload")
    world.receive("s/a")
    world.answer((None, b"{}"), reply_to="by/payload")
    assert [each.out.topic for each in world.sent] == ["by/mqtt", "by/payload"]


def test_none_is_answered_with_meta_alone_and_goes_nowhere_else() -> None:
    world = World([F, ("function:f", "#", "local")])
    world.receive("s/a", response_topic="r")
    world.answer(answer=b'{"meta": {"request": "x"}}')
    world.receive("s/a")
    world.answer()
    assert [(each.out.topic, each.json) for each in world.sent] == [("r", {"meta": {"request": "x"}})]


def test_the_control_socket_is_answered_in_place_of_a_link() -> None:
    world = World([("function:f", "#", "local")])
    answers: list[tuple[str, bytes]] = []
    message = Inbound("local", "infer/f", b"{}", 1, received_s=7.0)
    world.exchange.invoke("f", message, lambda *answer: answers.append(answer))
    assert world.requests[0].wants_answer
    world.answer((None, b'{"y": 1}'))
    world.exchange.invoke("f", message, lambda *answer: answers.append(answer))
    world.fail()
    assert answers[0] == (JSON, b'{"y": 1}')
    assert json.loads(answers[1][1])["error"]["code"] == "FUNCTION_RAISED"
    assert world.went() == [("local", "infer/f/f", 1)], "its result goes along the subscriptions like any other"


# -- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_goes_to_the_requester() -> None:
    world = World([F])
    world.receive("s/a", response_topic="r", correlation=b"c")
    world.fail("FUNCTION_TIMEOUT")
    (sent,) = world.sent
    assert (sent.out.topic, sent.out.properties.correlation, sent.out.properties.content_type) == ("r", b"c", JSON)
    error = {"code": "FUNCTION_TIMEOUT", "message": "It did not work. Try another."}
    assert sent.json == {"error": error, "meta": {"request": "c", **MODEL}}
    assert sent.user == {"request": "c", **MODEL}


def test_an_error_that_nobody_waits_for_goes_to_the_errors_topic_of_its_link() -> None:
    world = World([F, ("cloud", "s/+", "function:f")])
    for link, qos in (("local", 0), ("local", 1), ("cloud", 0)):
        world.receive("s/a", link=link, qos=qos)
        world.fail()
    errors = "marram/press-7/errors/f"
    assert world.went() == [("local", errors, 0), ("local", errors, 1), ("cloud", errors, 1)]


@pytest.mark.parametrize(
    ("payload", "properties", "id", "topic"),
    [
        (b'{"meta": {"id": "mine", "reply_to": "r"}}', {}, "mine", "r"),
        (b'{"meta": {"id": 12}}', {"response_topic": "r", "correlation": b"c"}, "12", "r"),
        (b'{"id": "oip"}', {"response_topic": "r"}, "oip", "r"),
        (msgpack.packb({"meta": {"id": "packed", "reply_to": "r"}}), {"content_type": MSGPACK}, "packed", "r"),
        (b"{no json", {"response_topic": "r", "correlation": b"c"}, "c", "r"),
        (b'{"meta": {"reply_to": 7}}', {"correlation": b"c"}, "c", "marram/press-7/errors/f"),
    ],
)
def test_what_no_worker_read_is_still_answered_to_whom_it_names(
    payload: bytes, properties: dict[str, Any], id: str, topic: str
) -> None:
    world = World([F], traits={"f": FunctionTraits(endpoint=True)})
    world.receive("s/a", payload, **properties)
    world.fail("OVERLOADED")
    (sent,) = world.sent
    read = msgpack.unpackb if sent.out.properties.content_type == MSGPACK else json.loads
    assert (sent.out.topic, read(sent.out.payload)["meta"]["request"]) == (topic, id)
    assert (sent.out.properties.content_type == MSGPACK) == (properties.get("content_type") == MSGPACK)


@pytest.mark.parametrize("topic", ["a/+", "a/#", "$SYS/a", "", "marram/press-7/state", "marram/press-7/errors/f/x"])
def test_nobody_is_answered_where_nobody_may_be(topic: str) -> None:
    world = World([F])
    world.receive("s/a", response_topic=topic)
    assert world.requests == [], "it is not even run"
    world.receive("s/a")
    world.answer((None, b"{}"), reply_to=topic)
    assert [each.out.topic for each in world.sent] == ["marram/press-7/errors/f"] * (2 if topic else 1)
    assert {each.json["error"]["code"] for each in world.sent} == {"BAD_RESPONSE_TOPIC"}
    world.hand_over()
    assert sorted(world.acked) == [1, 2]


def test_a_result_on_no_topic_at_all_is_an_error_and_the_rest_goes_on() -> None:
    world = World([F, ("function:f", "#", "local")])
    world.receive("s/a", response_topic="r")
    world.answer(("bad/#", b"{}"), ("good", b"{}"))
    assert [each.out.topic for each in world.sent] == ["marram/press-7/errors/f", "good", "r"]
    assert world.sent[0].json["error"]["code"] == "BAD_RESULT_TOPIC"


def test_an_answer_that_is_too_large_becomes_an_error_answer() -> None:
    world = World([F, ("function:f", "#", "local"), ("function:f", "#", "cloud")])
    world.too_large = lambda out: len(out.payload) > 500
    world.receive("s/a", response_topic="r", correlation=b"c")
    world.answer((None, json.dumps({"y": "x" * 600}).encode()))
    told = [(each.out.topic, each.json["error"]["code"]) for each in world.sent]
    errors = ("marram/press-7/errors/f", "MESSAGE_TOO_LARGE")
    assert told == [errors, errors, ("r", "MESSAGE_TOO_LARGE")], "one for each place where it should have gone"
    world.hand_over()
    assert world.acked == [1]


def test_a_broker_that_takes_nothing_at_all_holds_nothing_up() -> None:
    world = World([F, ("local", "s/+", "cloud"), ("function:f", "#", "local")], captured=1)
    world.too_large = lambda out: True
    world.receive("s/a", response_topic="r")
    world.answer((None, b"{}"))
    assert (world.sent, world.acked) == ([], [1])


# -- capture ----------------------------------------------------------------------------------------------------------


def test_a_sample_holds_what_came_and_what_was_made_of_it() -> None:
    world = World([F], captured=0.6)
    world.receive("s/a", b'{"x": [1, 2.5]}', qos=0)
    world.answer((None, b'{"y": 1}'), ("b", b'{"y": 2}'))
    (sent,) = world.sent
    assert (sent.link, sent.kind, sent.out.topic, sent.out.qos) == ("cloud", "capture", "marram/press-7/capture/f", 1)
    assert sent.json.pop("id")
    expected = {"reason": "random", "function": "f", **MODEL, "topic": "s/a", "value": 0.5,
                "timestamp": "2026-11-23T06:00:00.000Z",
                "input": {"x": [1, 2.5]}, "output": {"y": 1}}  # fmt: skip
    assert {k: v for k, v in sent.json.items() if k != "id"} == expected


def test_bytes_are_base64_in_a_sample_and_no_result_is_null() -> None:
    world = World([F], traits={"f": FunctionTraits(BINARY, captured=True)}, captured=1.0)
    world.receive("s/a", b"\x00\xff")
    world.answer((None, b"\x01"))
    world.receive("s/a", b"{}", content_type="application/json; charset=utf-8")
    world.answer()
    assert [(each.json["input"], each.json["output"]) for each in world.sent] == [("AP8=", "AQ=="), ({}, None)]
    ids = [each.json["id"] for each in world.sent]
    assert len(set(ids)) == 2


def test_what_chance_does_not_keep_and_what_failed_is_no_sample() -> None:
    world = World([F], captured=0.5)
    world.receive("s/a")
    world.answer()
    assert world.sent == [], "0.5 is not below 0.5"
    world.chance = 0.0
    world.receive("s/a", response_topic="r")
    world.fail()
    assert [each.out.topic for each in world.sent] == ["r"]


def test_what_a_function_keeps_itself_is_kept_whatever_the_policy_says() -> None:
    for captured in (None, 1.0):
        world = World([F], captured=captured)
        world.receive("s/a", b'{"x": 1}')
        own = Kept("odd", (JSON, b'{"x": 2}'), ("application/msgpack", b"\x01"))
        world.answer((None, b'{"y": 1}'), kept=[Kept("explicit"), own])
        samples = [each.json for each in world.sent]
        assert [(s["reason"], s["input"], s["output"]) for s in samples] == [
            ("explicit", {"x": 1}, {"y": 1}),
            ("odd", {"x": 2}, "AQ=="),
        ]
        assert samples[1]["output_type"] == "application/msgpack"
        assert len({s["id"] for s in samples}) == 2
        assert world.acked == []
        world.hand_over()
        assert world.acked == [1]


def test_a_message_waits_for_its_sample_to_be_safe() -> None:
    world = World([F], captured=1.0)
    world.receive("s/a")
    world.answer()
    assert world.acked == []
    world.hand_over()
    assert world.acked == [1]


# -- one connection for both links ------------------------------------------------------------------------------------


def test_with_one_link_all_goes_out_on_it() -> None:
    world = World([F, ("function:f", "#", "local")], one_link=True)
    world.receive("s/a", qos=0)
    world.answer((None, b"{}"))
    assert [(each.link, each.kind) for each in world.sent] == [("local", "result")]


def test_keys_differ_from_those_of_any_other_message_and_run() -> None:
    world = World([F])
    world.receive("s/a")
    world.receive("s/a")
    ids = [request.id for request in world.requests]
    assert len(set(ids)) == 2
    assert all(id.startswith("press-7-boot-") for id in ids)
