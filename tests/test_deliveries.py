"""When a message is acknowledged: every rule, and the promise under any order of events."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.messages import Inbound
from agent.routing.deliveries import CROWDED_S, HELD_S, YOUNG_S, Deliveries, Delivery


class World:
    """Links and spool as the port has them."""

    def __init__(self, window: int = 100) -> None:
        self.time = 0.0
        self.disk_keeps_up = True
        self.is_crowded = False
        self.acked: list[int] = []
        self.inbox: dict[str, Delivery] = {}
        self.pending: list[tuple[str, Delivery, Callable[[], None]]] = []
        self._window = window
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count(1)
        self.deliveries = Deliveries(self)

    def ack_on(self, link: str) -> Callable[[int, Delivery], None]:
        return lambda ticket, _: self.acked.append(ticket)

    def window(self, link: str) -> int:
        return self._window

    def put_inbox(self, delivery: Delivery, committed: Callable[[], None]) -> None:
        self.pending.append((delivery.key, delivery, committed))

    def drop_inbox(self, key: str) -> None:
        self.inbox.pop(key, None)
        self.pending = [p for p in self.pending if p[0] != key]

    def later(self, delay_s: float, run: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.time + delay_s, next(self._count), run))

    def keeps_up(self) -> bool:
        return self.disk_keeps_up

    def crowded(self, delivery: Delivery) -> bool:
        return self.is_crowded

    def now(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        until = self.time + seconds
        while self._due and self._due[0][0] <= until:
            self.time, _, run = heapq.heappop(self._due)
            run()
        self.time = until

    def commit(self) -> None:
        pending, self.pending = self.pending, []
        for key, delivery, committed in pending:
            self.inbox[key] = delivery
            committed()

    def message(self, payload: bytes = b"", *, dup: bool = False) -> Inbound:
        ticket = next(self._count)
        return Inbound(
            "local", "t", payload or str(ticket).encode(), qos=1, dup=dup, ticket=ticket, received_s=self.time
        )

    def begin(
        self, payload: bytes = b"", *, ready: bool = True, targets: tuple[str, ...] = ("function:f",)
    ) -> Delivery:
        message = self.message(payload)
        delivery = Delivery(f"k{message.ticket}", message, targets)
        self.deliveries.begin(delivery, ready=ready)
        return delivery


def test_it_is_acknowledged_when_its_last_outcome_is_safe() -> None:
    world = World()
    delivery = world.begin()
    delivery.open += 1
    world.deliveries.release(delivery)
    assert world.acked == []
    world.deliveries.release(delivery)
    assert world.acked == [delivery.message.ticket]
    assert not world.inbox
    assert not world.pending


def test_one_that_waits_is_committed_then_acknowledged_then_forgotten() -> None:
    world = World()
    delivery = world.begin()
    world.advance(HELD_S - 0.01)
    assert not world.pending
    world.advance(0.02)
    assert world.acked == []
    world.commit()
    assert world.acked == [delivery.message.ticket]
    assert delivery.key in world.inbox
    world.deliveries.release(delivery)
    assert delivery.key not in world.inbox
    assert world.acked == [delivery.message.ticket]


def test_one_for_a_function_that_is_not_ready_is_committed_at_once() -> None:
    world = World()
    delivery = world.begin(ready=False)
    assert [p[0] for p in world.pending] == [delivery.key]


def test_the_inbox_keeps_the_order_of_a_function_that_is_not_ready_any_more() -> None:
    world = World()
    first, others = world.begin(), world.begin(targets=("function:g",))
    second = world.begin(ready=False)
    assert [key for key, _, _ in world.pending] == [first.key, second.key]
    world.advance(HELD_S + 0.01)
    assert [key for key, _, _ in world.pending] == [first.key, second.key, others.key]


def test_what_cannot_go_to_the_inbox_holds_back_what_came_after_it() -> None:
    world = World()
    world.is_crowded = True
    first = world.begin(ready=False)
    world.advance(CROWDED_S - HELD_S)
    second = world.begin(ready=False)
    assert not world.pending
    world.advance(2 * HELD_S)
    assert [key for key, _, _ in world.pending] == [first.key]
    world.is_crowded = False
    world.begin(ready=False)
    assert [key for key, _, _ in world.pending][1] == second.key


def test_half_a_window_commits_what_holds_it_up_sooner() -> None:
    world = World(window=20)
    first = world.begin()
    for _ in range(10):
        world.begin()
    assert world.pending == []
    world.advance(YOUNG_S + 0.001)
    world.begin()
    assert world.pending[0][0] == first.key
    assert len(world.pending) == 11


def test_while_the_disk_does_not_keep_up_messages_stay_with_their_broker() -> None:
    world = World()
    world.disk_keeps_up = False
    slow, starting = world.begin(), world.begin(ready=False)
    world.advance(10)
    assert not world.pending
    world.disk_keeps_up = True
    world.advance(HELD_S + 0.01)
    assert [p[0] for p in world.pending] == [slow.key, starting.key]


def test_a_crowded_function_s_messages_wait_with_their_broker_for_a_while() -> None:
    world = World()
    world.is_crowded = True
    waiting = [world.begin(ready=False) for _ in range(3)]
    world.advance(CROWDED_S - 0.1)
    assert not world.pending
    world.deliveries.release(waiting[0])
    assert world.acked == [waiting[0].message.ticket]
    world.advance(0.2)
    assert [p[0] for p in world.pending] == [waiting[1].key, waiting[2].key], "others wait behind it on their link"


def test_a_redelivery_joins_what_still_runs_and_only_once() -> None:
    world = World()
    delivery = world.begin(b"same")
    world.deliveries.link_down("local")
    again = world.message(b"same")
    assert world.deliveries.join(again)
    assert not world.deliveries.join(world.message(b"same"))
    world.deliveries.release(delivery)
    assert world.acked == [again.ticket]


def test_a_redelivery_of_what_ended_while_the_link_was_down_is_acknowledged_and_not_run() -> None:
    world = World()
    delivery = world.begin(b"same")
    world.deliveries.link_down("local")
    world.deliveries.release(delivery)
    assert world.acked == []
    again = world.message(b"same", dup=True)
    assert world.deliveries.join(again)
    assert world.acked == [again.ticket]


def test_what_was_acknowledged_is_joined_by_a_duplicate_only() -> None:
    world = World()
    first = world.begin(b"same", ready=False).message.ticket
    world.commit()
    world.deliveries.link_down("local")
    assert not world.deliveries.join(world.message(b"same"))
    duplicate = world.message(b"same", dup=True)
    assert world.deliveries.join(duplicate)
    assert world.acked == [first, duplicate.ticket]


def test_a_redelivery_of_what_the_link_had_still_to_acknowledge_is_acknowledged_and_not_run() -> None:
    world = World()
    delivery = world.begin(b"same")
    world.deliveries.release(delivery)
    running = world.begin(b"same")
    world.deliveries.link_down("local", [delivery])
    first, second = world.message(b"same", dup=True), world.message(b"same", dup=True)
    assert not world.deliveries.join(world.message(b"other", dup=True))
    assert world.deliveries.join(first)
    assert world.acked[1:] == [first.ticket]
    assert world.deliveries.join(second)
    world.deliveries.release(running)
    assert world.acked[1:] == [first.ticket, second.ticket]


def test_after_a_lost_session_equal_messages_are_new() -> None:
    world = World()
    world.begin(b"same")
    world.deliveries.link_down("local")
    world.deliveries.session_lost("local")
    assert not world.deliveries.join(world.message(b"same", dup=True))


def test_what_the_inbox_kept_is_joined_by_its_redelivery() -> None:
    world = World()
    delivery = Delivery("old", world.message(b"same"))
    world.inbox["old"] = delivery
    world.deliveries.restore(delivery)
    assert world.deliveries.join(world.message(b"same", dup=True))
    world.deliveries.release(delivery)
    assert "old" not in world.inbox


STEPS = st.lists(st.sampled_from(["begin", "slow", "release", "commit", "tick", "down"]), max_size=60)


@given(STEPS)
@settings(max_examples=400, deadline=None)
def test_nothing_is_acknowledged_before_it_is_safe_and_everything_is_in_the_end(steps: list[str]) -> None:
    world = World(window=8)
    running: list[Delivery] = []
    safe: set[int] = set()

    def release() -> None:
        delivery = running.pop(0)
        safe.add(delivery.message.ticket)
        world.deliveries.release(delivery)

    for step in steps:
        if step in ("begin", "slow"):
            running.append(world.begin(ready=step == "begin"))
        elif step == "release" and running:
            release()
        elif step == "commit":
            world.commit()
        elif step == "tick":
            world.advance(0.03)
        elif step == "down":
            world.deliveries.link_down("local")
            for delivery in running:  # the broker sends again what it saw no acknowledgement of
                if delivery.message.ticket not in world.acked:
                    again = world.message(delivery.message.payload, dup=True)
                    assert world.deliveries.join(again)
        committed = {d.message.ticket for d in world.inbox.values()}
        for ticket in world.acked:
            assert ticket in safe or ticket in committed or ticket not in {d.message.ticket for d in running}
    while running:
        release()
    world.commit()
    assert len(world.deliveries) == 0
    assert safe <= set(world.acked)
    assert not world.inbox
