"""Who asks again with the same id is answered from memory, and nobody gets another one's answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.messages import Inbound, Properties
from agent.routing.deliveries import Delivery
from agent.routing.outcomes import FunctionTraits
from agent.routing.repeats import Repeats, message_id
from agent.settings import AnswerLimits
from tests.test_exchange import F, World

ASK = {"response_topic": "r/1", "correlation": b"7"}
NAMED = json.dumps({"x": 1, "meta": {"id": "seven", "reply_to": "r/1"}}).encode()


def went(world: World) -> list[tuple[str, bytes]]:
    return [(each.out.topic, each.out.payload) for each in world.sent]


def test_asked_again_after_its_answer_it_is_answered_from_memory() -> None:
    world = World([F, ("function:f", "#", "local"), ("function:f", "#", "cloud")])
    world.receive("s/a", **ASK)
    world.answer((None, b'{"y": 1}'))
    world.hand_over()
    before = went(world)
    assert world.acked == [1]
    world.receive("s/a", **ASK)
    assert len(world.requests) == 1, "it is not run again"
    again = world.sent[len(before) :]
    assert {each.link for each in again} == {"local"}, "the cloud has its own already"
    assert {each.out.topic for each in again} == {"r/1", "s/a/f"}
    assert world.acked == [1], "not before these are with the broker"
    for each in again:
        each.done()
    assert world.acked == [1, 2]
    assert world.exchange.answered_again == 1


def test_asked_again_while_it_runs_it_waits_for_the_one_run() -> None:
    world = World([F])
    world.receive("s/a", NAMED)
    world.receive("s/a", NAMED)
    world.receive("s/a", NAMED, dup=True)
    assert len(world.requests) == 1
    world.answer((None, b'{"y": 1}'), reply_to="r/1")
    assert world.acked == []
    world.hand_over()
    assert sorted(world.acked) == [1, 2, 3]
    assert [topic for topic, _ in went(world)] == ["r/1"]


@pytest.mark.parametrize(
    "other",
    [
        {"topic": "s/b"},
        {"link": "cloud"},
        {"payload": b'{"x": 2}'},
        {"response_topic": "r/2"},
        {"correlation": b"8"},
        {"content_type": "application/octet-stream"},
        {"user": (("device", "b"),)},
    ],
)
@pytest.mark.parametrize("over", [True, False])
def test_the_same_id_from_somebody_else_is_another_request(other: dict[str, Any], over: bool) -> None:
    world = World([F, ("cloud", "s/+", "function:f")])
    said = {"topic": "s/a", "payload": b'{"x": 1}', **ASK}
    world.receive(**said)  # type: ignore[arg-type]
    if over:
        world.answer((None, b"{}"))
        world.hand_over()
    world.receive(**{**said, **other})
    assert len(world.requests) == 2


def test_without_an_id_equal_readings_are_two() -> None:
    world = World([F])
    for _ in range(2):
        world.receive("s/a", b'{"x": 1}')
    world.answer((None, b"{}"), request=0)
    world.answer((None, b"{}"), request=1)
    world.receive("s/a", b'{"x": 1}')
    assert len(world.requests) == 3


def test_the_id_of_a_sensor_is_none_of_a_request() -> None:
    reading = b'{"id": "sensor-3", "x": 1}'
    world = World([F])
    for _ in range(2):
        world.receive("s/a", reading)
    assert len(world.requests) == 2
    world.exchange.traits = {"f": FunctionTraits(endpoint=True)}
    world.receive("s/a", reading)
    assert len(world.requests) == 2, "an endpoint's protocol has its id there"


def test_another_group_answers_anew() -> None:
    world = World([F])
    world.receive("s/a", **ASK)
    world.answer((None, b"{}"))
    world.hand_over()
    world.receive("s/b", **ASK)
    world.exchange.forget_answers()
    world.receive("s/a", **ASK)
    assert len(world.requests) == 3, "it is run again, by the new group"
    world.answer((None, b"{}"), request=1)
    world.hand_over()
    world.receive("s/b", **ASK)
    assert len(world.requests) == 4, "what the old group answered since is not remembered either"
    world.answer((None, b"{}"), request=3)
    world.hand_over()
    world.receive("s/b", **ASK)
    assert len(world.requests) == 4


def test_an_error_is_not_remembered() -> None:
    world = World([F])
    world.receive("s/a", **ASK)
    world.fail("WORKER_CRASHED")
    world.hand_over()
    world.receive("s/a", **ASK)
    assert len(world.requests) == 2


def test_memory_ends_with_its_time_its_count_and_its_bytes() -> None:
    def world_of(**limits: Any) -> World:
        world = World([F], remembered=AnswerLimits(**limits))
        for n in range(3):
            world.receive("s/a", b"{}", correlation=b"%d" % n, response_topic="r")
            world.answer((None, b"x" * 1000))
            world.hand_over()
        return world

    def remembers(world: World) -> list[int]:
        before, found = len(world.requests), []
        for n in range(3):
            world.receive("s/a", b"{}", correlation=b"%d" % n, response_topic="r")
            if len(world.requests) == before:
                found.append(n)
            before = len(world.requests)
        return found

    assert remembers(world_of()) == [0, 1, 2]
    assert remembers(world_of(max_count=2)) == [1, 2]
    assert remembers(world_of(max_count=0)) == []
    assert remembers(world_of(max_bytes=6400)) == [0, 1, 2]
    assert remembers(world_of(max_bytes=2000)) == []  # one is more than a quarter
    world = world_of(keep_s=10)
    world.time += 11
    assert remembers(world) == []


def test_after_a_restart_what_the_inbox_kept_is_joined() -> None:
    world = World([F])
    properties = Properties(response_topic="r/1", correlation=b"7")
    world.exchange.restore("old", Inbound("local", "s/a", b"{}", 1, properties=properties), ("function:f",))
    world.receive("s/a", **ASK)
    assert len(world.requests) == 1
    # What joined it has nothing to run by itself, and must not pass for its outcome.
    world = World([F])
    world.exchange.restore("old", Inbound("local", "s/a", b"{}", 1, properties=properties), ())
    world.receive("s/a", **ASK)
    assert len(world.requests) == 1


def test_expiry_counts_on_from_link_to_link() -> None:
    world = World([("local", "#", "cloud")])
    world.receive("s/a", expiry_s=30, received_s=world.time - 12.5)
    assert world.sent[0].out.properties.expiry_s == 18
    world.receive("s/a", expiry_s=30, received_s=world.time - 31)
    assert len(world.sent) == 1
    assert world.exchange.expired == 1
    assert world.acked == [2], "what expired is over"


def test_a_result_has_the_same_id_when_its_request_is_run_again() -> None:
    ids = []
    for _ in range(2):
        world = World([F, ("function:f", "#", "cloud")])
        world.receive("s/a", b'{"x": 1}', **ASK)
        world.answer((None, b'{"y": 1}'), ("t", b"{}"))
        ids.append([each.user.get("id") for each in world.sent if each.link == "cloud"])
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 2


MESSAGES = st.builds(
    Inbound,
    st.sampled_from(["local", "cloud"]),
    st.sampled_from(["s/a", "s/b"]),
    st.sampled_from([b"{}", b'{"x": 1}', NAMED]),
    properties=st.builds(
        Properties,
        content_type=st.sampled_from([None, "application/json"]),
        expiry_s=st.none(),
        response_topic=st.sampled_from([None, "r/1", "r/2"]),
        correlation=st.sampled_from([None, b"7", b"8"]),
        user=st.sampled_from([(), (("device", "a"),)]),
    ),
)


@given(st.lists(MESSAGES, max_size=30))
def test_only_the_same_request_is_ever_taken_for_it(messages: list[Inbound]) -> None:
    def said(message: Inbound) -> object:
        told = message.properties
        return message.link, message.topic, message.payload, told.response_topic, told.correlation, told.user

    repeats = Repeats(AnswerLimits(), lambda: 0.0, lambda delivery: True)
    for n, message in enumerate(messages):
        delivery = Delivery(str(n), message)
        delivery.named = True
        first = repeats.begin(delivery)
        if first is not None:
            assert isinstance(first, Delivery)
            assert said(first.message) == said(message)
            continue
        for other in messages[:n]:
            if said(other) != said(message):
                named = Delivery("other", other)
                named.named = True
                assert message_id(named, "f", 1) != message_id(delivery, "f", 1)
