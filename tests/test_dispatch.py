"""Requests in flight, in a simulation: made-up clock and workers, everything else real."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import AgentError, FunctionError
from agent.inference.dispatch import Dispatcher
from agent.inference.pool import FAILED_STARTS, Pool, PoolLimits
from agent.inference.queueing import MAX_QUEUED
from agent.inference.requests import Answer, Examination, Failure, Origin, Request

CRASH = FunctionError("WORKER_CRASHED", "gone")


class Clock:
    def __init__(self) -> None:
        self.time = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def now(self) -> float:
        return self.time

    def later(self, delay_s: float, run: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.time + delay_s, next(self._count), run))

    def advance(self, seconds: float) -> None:
        until = self.time + seconds
        while self._due and self._due[0][0] <= until:
            self.time, _, run = heapq.heappop(self._due)
            run()
        self.time = until


class FakeWorker:
    """A worker process as the pool's port has it, driven by the test."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.pid = 1
        self.sent: dict[int, Request] = {}
        self.stopped = False
        self.alive = True

    def send(self, n: int, request: Request) -> None:
        assert self.alive
        self.sent[n] = request

    def examine(self, examination: Examination, done: Callable[[AgentError | None], None]) -> None:
        raise AssertionError("nobody asks for it here")

    def stop(self) -> None:
        self.stopped = True

    def kill(self, reason: FunctionError) -> None:
        self.lose(reason)

    def check(self, late: FunctionError) -> None:
        self.lose(late)

    def lose(self, reason: AgentError = CRASH) -> None:
        if self.alive:
            self.alive = False
            self.pool.on_lost(self, reason)

    def answer(self) -> None:
        n = next(iter(self.sent))
        request = self.sent.pop(n)
        self.pool.on_result(self, n, Answer(self.pool.origin, request.id, None, []))
        if self.stopped and not self.sent:
            self.lose()


class Bench:
    """A pool with its made-up world."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.workers: list[FakeWorker] = []
        self.outcomes: dict[str, list[Any]] = {}
        self.pool = self.make("g1", **limits)

    def make(self, deployment: str, **limits: Any) -> Pool:
        def start(pool: Pool) -> FakeWorker:
            self.workers.append(FakeWorker(pool))
            return self.workers[-1]

        return Pool(Origin("f", "m", "v", deployment), PoolLimits(**limits), start, self.clock, lambda: 0.5)

    def open(self, *, batch: int = 1) -> list[FakeWorker]:
        self.pool.open()
        for worker in self.workers:
            self.pool.on_ready(worker, batch)
        return list(self.workers)

    def request(self, name: str, **more: Any) -> Request:
        def settle(request: Request, outcome: Any) -> None:
            self.outcomes.setdefault(name, []).append(outcome)

        return Request("f", "t", b"x", None, name, settle, **more)

    def submit(self, *names: str) -> None:
        for name in names:
            self.pool.submit(self.request(name))

    def codes(self, name: str) -> list[str | None]:
        return [o.error.code if isinstance(o, Failure) else None for o in self.outcomes.get(name, [])]


def test_what_comes_before_a_worker_is_ready_waits_for_it() -> None:
    bench = Bench()
    bench.pool.open()
    bench.submit("a")
    assert bench.pool.state == "starting"
    assert not bench.workers[0].sent
    bench.pool.on_ready(bench.workers[0], 1)
    bench.workers[0].answer()
    assert bench.codes("a") == [None]


def test_a_request_whose_worker_dies_runs_once_more_elsewhere_then_is_answered() -> None:
    bench = Bench(processes=2)
    first, second = bench.open()
    bench.submit("a")
    first.lose()
    assert [r.id for r in second.sent.values()] == ["a"]
    second.lose()
    assert bench.codes("a") == ["WORKER_CRASHED"]


def test_those_that_only_waited_behind_it_are_not_charged() -> None:
    bench = Bench()
    (worker,) = bench.open()
    for _ in range(20):  # a fast function: the pool sends ahead
        bench.submit("warm")
        worker.answer()
    bench.submit("head", "behind")
    assert [r.id for r in worker.sent.values()] == ["head", "behind"]
    worker.lose()
    bench.clock.advance(1)
    again = bench.workers[-1]
    bench.pool.on_ready(again, 1)
    again.lose()
    assert bench.codes("head") == ["WORKER_CRASHED"]
    assert bench.codes("behind") == []


def test_a_late_request_is_answered_at_once_and_never_run_again() -> None:
    bench = Bench(timeout_s=2.0)
    (worker,) = bench.open()
    bench.submit("slow")
    bench.clock.advance(1.9)
    assert bench.codes("slow") == []
    bench.clock.advance(0.2)
    assert bench.codes("slow") == ["FUNCTION_TIMEOUT"]
    assert not worker.alive


def test_the_time_limit_counts_from_the_answer_before_it() -> None:
    bench = Bench(timeout_s=2.0)
    (worker,) = bench.open()
    for _ in range(20):
        bench.submit("warm")
        worker.answer()
    bench.submit("a", "b")
    bench.clock.advance(1.5)
    worker.answer()
    bench.clock.advance(1.5)
    assert bench.codes("b") == []
    bench.clock.advance(0.6)
    assert bench.codes("b") == ["FUNCTION_TIMEOUT"]


def test_more_than_the_queue_holds_is_answered_overloaded() -> None:
    bench = Bench()
    bench.pool.open()
    bench.submit(*(str(i) for i in range(MAX_QUEUED + 1)))
    assert bench.codes(str(MAX_QUEUED)) == ["OVERLOADED"]
    assert bench.codes("0") == []


def test_an_expired_request_is_answered_so_and_not_run() -> None:
    bench = Bench()
    bench.pool.open()
    bench.pool.submit(bench.request("old", expires_s=1.0))
    bench.clock.advance(2)
    bench.pool.on_ready(bench.workers[0], 1)
    assert bench.codes("old") == ["EXPIRED"]
    assert not bench.workers[0].sent


def test_a_function_that_never_starts_answers_and_keeps_trying_with_longer_waits() -> None:
    bench = Bench()
    bench.pool.open()
    bench.submit("a")
    for _ in range(FAILED_STARTS):
        bench.workers[-1].lose(FunctionError("FUNCTION_IMPORT_FAILED", "no module"))
        bench.clock.advance(40)
    assert bench.pool.state == "failed"
    assert bench.codes("a") == ["FUNCTION_FAILED"]
    bench.submit("b")
    assert bench.codes("b") == ["FUNCTION_FAILED"]
    bench.pool.on_ready(bench.workers[-1], 1)
    assert bench.pool.state == "ready"


def test_promotion_moves_what_waits_and_lets_what_runs_finish_on_the_old_version() -> None:
    bench = Bench()
    dispatcher = Dispatcher()
    dispatcher.promote([bench.pool], lambda pool: None)
    (old,) = bench.open()
    dispatcher.submit(bench.request("running"))
    dispatcher.submit(bench.request("waiting"))
    heir = bench.make("g2")
    heir.open()
    heir.on_ready(bench.workers[-1], 1)
    drained: list[Pool] = []
    dispatcher.promote([heir], drained.append)
    bench.workers[-1].answer()
    assert not drained
    old.answer()
    assert drained == [bench.pool]
    assert [o.origin.deployment for o in bench.outcomes["running"]] == ["g1"]
    assert [o.origin.deployment for o in bench.outcomes["waiting"]] == ["g2"]


def test_a_request_for_what_is_not_deployed_is_answered() -> None:
    bench = Bench()
    dispatcher = Dispatcher()
    dispatcher.submit(bench.request("a"))
    assert bench.codes("a") == ["FUNCTION_NOT_DEPLOYED"]


@given(
    st.lists(st.sampled_from(["submit", "answer", "crash", "ready", "tick", "promote"]), min_size=5, max_size=80),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_whatever_happens_each_request_has_exactly_one_outcome(steps: list[str], processes: int, seed: int) -> None:
    chance = random.Random(seed)
    bench = Bench(processes=processes)
    dispatcher = Dispatcher()
    bench.pool.open()
    dispatcher.promote([bench.pool], lambda pool: None)
    submitted = itertools.count()
    ready: set[FakeWorker] = set()

    def make_ready() -> None:
        for worker in bench.workers:
            if worker.alive and worker not in ready:
                ready.add(worker)
                worker.pool.on_ready(worker, 1)

    def act(step: str) -> None:
        live = [w for w in bench.workers if w.alive]
        if step == "submit":
            dispatcher.submit(bench.request(str(next(submitted))))
        elif step == "answer" and (busy := [w for w in live if w.sent]):
            chance.choice(busy).answer()
        elif step == "crash" and live:
            chance.choice(live).lose()
        elif step == "ready":
            make_ready()
        elif step == "tick":
            bench.clock.advance(chance.choice([0.01, 1.0, 4.0]))
        elif step == "promote":
            pool = bench.make("next", processes=processes)
            pool.open()
            dispatcher.promote([pool], lambda pool: None)

    for step in steps:
        act(step)
    for _ in range(500):
        make_ready()
        busy = [w for w in bench.workers if w.alive and w.sent]
        if busy:
            busy[0].answer()
        else:
            bench.clock.advance(1.0)
        if len(bench.outcomes) == (total := int(repr(submitted)[6:-1])) and not any(
            w.sent for w in bench.workers if w.alive
        ):
            break
    assert len(bench.outcomes) == total
    assert all(len(outcomes) == 1 for outcomes in bench.outcomes.values())


def test_a_worker_that_settles_what_is_late_is_left_alone_a_second_longer() -> None:
    bench = Bench(timeout_s=3.0)
    bench.pool.open()
    [worker] = bench.workers
    bench.pool.on_ready(worker, 16, settles_late=True)
    bench.submit("a")
    bench.clock.advance(3.9)
    assert worker.alive
    bench.clock.advance(0.2)
    assert bench.codes("a") == ["FUNCTION_TIMEOUT"]


def test_a_crowded_function_says_so_and_what_an_earlier_run_took_takes_no_room() -> None:
    from agent.inference.queueing import MAX_QUEUED, WorkQueue

    queue = WorkQueue()
    settle = lambda request, outcome: None  # noqa: E731
    for n in range(3 * MAX_QUEUED):
        assert queue.put(Request("f", "t", b"x", None, str(n), settle, admitted=True))
    assert not queue.is_crowded
    for n in range(MAX_QUEUED):
        assert queue.is_crowded == (n > MAX_QUEUED // 2)
        assert queue.put(Request("f", "t", b"x", None, str(n), settle))
    assert not queue.put(Request("f", "t", b"x", None, "one more", settle))
    for _ in range(4 * MAX_QUEUED):
        queue.get()
    assert not queue.requests
    assert not queue.is_crowded


def test_a_pool_that_nobody_serves_is_crowded_when_its_queue_is_half_full() -> None:
    bench = Bench()
    bench.pool.open()
    bench.submit(*(str(i) for i in range(MAX_QUEUED // 2)))
    assert not bench.pool.crowded
    bench.submit("more", "still more")
    assert bench.pool.crowded
    dispatcher = Dispatcher()
    dispatcher.pools["f"] = bench.pool
    assert dispatcher.crowded("f")
    assert not dispatcher.crowded("nobody")
