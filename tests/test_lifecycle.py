"""When a function has workers: always, or on demand; in a simulation, and with a real agent."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import FunctionError
from agent.inference.demand import GROW_S
from agent.inference.pool import FAILED_STARTS
from tests.agent_kit import function, subscription
from tests.conftest import Site
from tests.mqtt_kit import wait_until
from tests.test_dispatch import Bench, FakeWorker
from tests.test_main_job import ask

KEEP_S = 10.0
BROKEN = FunctionError("MODEL_LOAD_FAILED", "no such layer")


def on_demand(**limits: Any) -> Bench:
    return Bench(**{"keep_alive_s": KEEP_S, "processes": 25, "timeout_s": 100.0, **limits})


def living(bench: Bench) -> list[FakeWorker]:
    return [worker for worker in bench.workers if worker.alive]


def test_without_requests_there_is_no_worker_and_it_is_ready() -> None:
    bench = on_demand()
    assert (bench.pool.state, bench.workers) == ("ready", [])
    bench.submit("a", "b")
    (worker,) = bench.workers
    assert bench.pool.state == "starting"
    bench.pool.on_ready(worker, 1)
    assert bench.pool.state == "ready"
    worker.answer()
    worker.answer()
    assert bench.codes("a") == bench.codes("b") == [None]


def test_a_worker_that_has_nothing_to_do_is_ended_and_the_next_request_starts_another() -> None:
    bench = on_demand()
    bench.submit("a")
    first = bench.workers[0]
    bench.pool.on_ready(first, 1)
    bench.clock.advance(KEEP_S / 2)
    first.answer()
    bench.clock.advance(KEEP_S * 0.9)
    assert not first.stopped
    bench.clock.advance(KEEP_S)
    assert first.stopped
    bench.submit("b")  # while the first is on its way out
    assert len(bench.workers) == 2
    first.lose(FunctionError("WORKER_CRASHED", "ended as it was told"))
    assert bench.pool.last_loss is None
    assert bench.pool.state == "ready"
    bench.pool.on_ready(bench.workers[1], 1)
    bench.workers[1].answer()
    assert bench.codes("b") == [None]


def test_more_are_started_one_at_a_time_and_only_for_what_waits_long() -> None:
    bench = on_demand(processes=3)
    bench.pool.open()
    bench.pool.on_ready(bench.workers[0], 1)
    for name in "abcdef":
        bench.submit(name)
    assert len(bench.workers) == 1
    bench.clock.advance(GROW_S)
    assert len(bench.workers) == 2
    bench.clock.advance(10 * GROW_S)
    assert len(bench.workers) == 2, "the second is still on its way"
    bench.pool.on_ready(bench.workers[1], 1)
    bench.clock.advance(10 * GROW_S)
    assert len(bench.workers) == 3
    bench.pool.on_ready(bench.workers[2], 1)
    bench.clock.advance(10 * GROW_S)
    assert len(bench.workers) == 3, "more than its limit"
    assert all(worker.sent for worker in bench.workers)


def test_one_that_does_not_start_fails_its_requests_and_comes_back() -> None:
    bench = on_demand()
    bench.submit("a")
    for _ in range(FAILED_STARTS):
        living(bench)[-1].lose(BROKEN)
        bench.clock.advance(60)
    assert (bench.pool.state, bench.codes("a")) == ("failed", ["FUNCTION_FAILED"])
    bench.submit("b")
    assert bench.codes("b") == ["FUNCTION_FAILED"]
    bench.pool.on_ready(living(bench)[-1], 1)
    assert bench.pool.state == "ready"


def test_on_trial_an_idle_worker_stays() -> None:
    bench = on_demand()
    bench.pool.held = True
    bench.pool.open()
    bench.pool.on_ready(bench.workers[0], 1)
    bench.clock.advance(20 * KEEP_S)
    assert not bench.workers[0].stopped
    bench.pool.held = False
    bench.clock.advance(2 * KEEP_S)
    assert bench.workers[0].stopped


@given(
    st.lists(st.sampled_from(["submit", "answer", "crash", "ready", "tick", "idle"]), min_size=5, max_size=80),
    st.integers(1, 4),
    st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_whatever_happens_nothing_is_lost_and_the_limit_holds(steps: list[str], processes: int, seed: int) -> None:
    chance = random.Random(seed)
    bench = on_demand(processes=processes)
    submitted = itertools.count()
    total = 0
    ready: set[FakeWorker] = set()

    def tend() -> None:
        for worker in living(bench):
            if worker not in ready:
                ready.add(worker)
                bench.pool.on_ready(worker, 1)
            elif worker.stopped and not worker.sent:
                worker.lose()

    for step in steps:
        live = living(bench)
        if step == "submit":
            bench.submit(str(next(submitted)))
            total += 1
        elif step == "answer" and (busy := [w for w in live if w.sent]):
            chance.choice(busy).answer()
        elif step == "crash" and live:
            chance.choice(live).lose()
        elif step == "ready":
            tend()
        else:
            bench.clock.advance(chance.choice([0.01, 0.2]) if step == "tick" else KEEP_S)
        assert len([w for w in living(bench) if not w.stopped]) <= processes
    for _ in range(500):
        tend()
        busy = [w for w in living(bench) if w.sent]
        if busy:
            busy[0].answer()
        else:
            bench.clock.advance(1.0)
        if len(bench.outcomes) == total and not any(w.sent for w in living(bench)):
            break
    assert sorted(len(outcomes) for outcomes in bench.outcomes.values()) == [1] * total
    bench.clock.advance(3 * KEEP_S)
    tend()
    bench.clock.advance(3 * KEEP_S)
    tend()
    assert not [w for w in living(bench) if not w.stopped], "workers stay though there is nothing to do"
    assert bench.pool.state == "ready"


def test_a_function_on_demand_comes_and_goes(site: Site) -> None:
    quick = function("sleepy", Pinned=False, Timeout=30, marram={"KeepAlive": 1})
    document = {
        "DeploymentId": "d1",
        "Functions": [quick],
        "Subscriptions": [subscription("local", "try/sleepy", "function:sleepy")],
    }

    def state() -> list[tuple[str, str]]:
        return [(each["id"], each["status"]) for each in core.status()["state"]["functions"]]

    with site.core() as core, site.device() as device:
        core.wait_linked()
        core.deploy(document)
        wait_until(lambda: not core.worker_pids(), "the trial's worker to go")
        assert state() == [("sleepy", "ready")]
        assert json.loads(ask(device, "try/sleepy", {"seconds": 0}, "one").payload)["slept"] == 0
        assert len(core.worker_pids()) == 1
        told = core.status()["workers"]["sleepy"]
        assert (told["pinned"], told["memory_kb"][0] > 1000, told["memory_limit_kb"]) == (False, True, None)
        for number in range(3):  # each longer than the worker's window: they run side by side
            device.publish("try/sleepy", json.dumps({"seconds": 3}), qos=1, response_topic=f"side/{number}")
        wait_until(lambda: len(core.worker_pids()) > 1, "a second worker beside the first")
        wait_until(lambda: not core.worker_pids(), "all to go")
        core.kill()  # an inbox that nobody has worked off
        device.publish("try/sleepy", json.dumps({"seconds": 0}), qos=1)
        core.start()
        core.wait_linked()
        assert json.loads(ask(device, "try/sleepy", {"seconds": 0}, "two").payload)["slept"] == 0
