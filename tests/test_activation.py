"""The turn from one group's workers to the next, with real worker processes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.activation import Activation
from agent.demo.formats import write_onnx
from agent.deployment.definition import (
    NO_CONTAINER,
    AccessPolicy,
    Deployment,
    FileSource,
    Function,
    Probation,
    Resource,
)
from agent.deployment.objects import ObjectRef
from agent.deployment.store import Group
from agent.errors import FunctionError
from agent.inference import launching
from agent.inference.dispatch import Dispatcher
from agent.inference.requests import Answer, Failure, Request
from agent.inference.spare import Spare
from agent.instance import MARK
from agent.settings import Link, Policy, Settings, Topics
from tests.agent_kit import FUNCTIONS, by_hand, layers

DEADLINE_S = 30.0


class Bench:
    """An activation on this loop, without links and without a deployer."""

    def __init__(self, directory: Path, launch: launching.Launch = launching.start) -> None:
        loop = asyncio.get_running_loop()
        settings = Settings(
            file=directory / "topics.yaml", core="press-7", state=directory / "state", functions=(FUNCTIONS,),
            local=Link("local", "mqtt://127.0.0.1:1"), cloud=None, topics=Topics("d", "s", "t", "c", "e"),
            subscriptions=(), policy=Policy(),
        )  # fmt: skip
        self.run = settings.state / "run"
        self.dispatcher = Dispatcher()
        self.news = asyncio.Event()
        self.activation = Activation(
            settings, self.dispatcher, loop=loop, routed=self._routed, changed=self.news.set, launch=launch
        )  # fmt: skip

    async def _routed(self, group: Group) -> None:
        pass

    async def until(self, condition: Any) -> None:
        async def wait() -> None:
            while not condition():
                self.news.clear()
                await self.news.wait()

        await asyncio.wait_for(wait(), DEADLINE_S)

    def ask(self, function: str, event: Any) -> asyncio.Future[Answer | Failure]:
        answered: asyncio.Future[Answer | Failure] = asyncio.get_running_loop().create_future()
        request = Request(function, "t", json.dumps(event).encode(), None, "r", lambda _, got: answered.set_result(got))
        self.dispatcher.submit(request)
        return answered

    def views(self, function: str) -> list[str]:
        return sorted(view.name for view in (self.run / function).iterdir())


def group(number: int, function: str, tree: Path, *, model: str | None = None) -> Group:
    """A group of one function of the tests and a model with that `tree`, which is loaded where `model` is its Id."""
    policies = (AccessPolicy(model),) if model else ()
    resource = Resource("m", "m", FileSource("/m"), destination="/ml/m")
    # Not in a container, which would have a /tmp of its own: the tests talk to the function through files.
    made = Function(function, f"function:{function}", folder=function, policies=policies, isolation=NO_CONTAINER)
    deployment = Deployment(f"d{number}", "NewDeployment", None, "", (resource,), (made,))
    return Group(
        number, deployment, {"m": ObjectRef("0" * 64, tree)}, {function: ObjectRef("1" * 64, FUNCTIONS / function)}
    )


def test_a_group_that_is_started_again_while_it_drains_keeps_its_view(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        activation = bench.activation
        first, second = group(1, "sleepy", tmp_path), group(2, "sleepy", tmp_path)
        await activation.warm(first)
        await activation.promote(first)
        slow = bench.ask("sleepy", {"seconds": 1.5})
        await activation.warm(second)
        await activation.promote(second)
        await activation.release(second)  # the first start of group 1 drains
        await activation.warm(first)
        await activation.promote(first)  # before it has ended
        await activation.discard(second)
        assert not slow.done()
        assert {"1-1", "1-3"} <= set(bench.views("sleepy"))
        assert isinstance(await slow, Answer)
        await bench.until(lambda: bench.views("sleepy") == ["1-3"])
        assert isinstance(await bench.ask("sleepy", {"seconds": 0}), Answer)
        await activation.stop(5)
        assert bench.views("sleepy") == []

    asyncio.run(main())


def test_the_way_back_needs_no_new_worker_and_loses_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        activation, dispatcher = bench.activation, bench.dispatcher
        first, second = group(1, "sleepy", tmp_path), group(2, "sleepy", tmp_path)
        await activation.warm(first)
        await activation.promote(first)
        before = dispatcher.pools["sleepy"]
        pids = before.pids()
        gate = tmp_path / "gate"
        old = bench.ask("sleepy", {"until": str(gate)})
        waits = bench.ask("sleepy", {"seconds": 0})  # with no worker yet: the new ones take it
        await activation.warm(second)
        await activation.promote(second)
        assert activation.in_use() == {1, 2}
        assert isinstance(answer := await waits, Answer)
        assert answer.origin.deployment == "d2"
        assert not old.done()
        new = [bench.ask("sleepy", {"seconds": 0.1}) for _ in range(3)]
        await activation.warm(first)
        await activation.promote(first)
        await activation.discard(second)
        assert dispatcher.pools["sleepy"] is before
        assert before.pids() == pids
        gate.touch()
        outcomes = await asyncio.gather(old, *new)
        assert all(isinstance(outcome, Answer) for outcome in outcomes), outcomes
        await bench.until(lambda: activation.in_use() == {1})
        assert bench.views("sleepy") == ["1-1"]
        await activation.stop(5)

    asyncio.run(main())


def golden(tmp_path: Path, weights: int) -> Path:
    """An object's tree with a model, and beside it what the model of `weights` answers."""
    tree = tmp_path / "object" / "tree"
    tree.mkdir(parents=True, exist_ok=True)
    write_onnx(tree / "model.onnx", layers(1))
    outputs = {"probabilities": [by_hand(layers(weights), [0.5] * 16).tolist()]}
    check = {"Requests": [{"Inputs": {"data": [[0.5] * 16]}, "Outputs": outputs}]}
    (tree.parent / "health.json").write_text(json.dumps(check))
    return tree


def test_with_nothing_to_do_the_golden_requests_are_run_again_at_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        made = group(1, "scores", golden(tmp_path, 1), model="m")
        await bench.activation.warm(made)
        await bench.activation.check(made)
        await bench.activation.promote(made)
        await bench.activation.observe(made, Probation(seconds=0.1))
        golden(tmp_path, 2)  # as if the model answered differently now
        with pytest.raises(FunctionError) as caught:
            await bench.activation.observe(made, Probation(seconds=0.1))
        assert caught.value.code == "HEALTH_CHECK_FAILED"
        await bench.activation.stop(5)

    asyncio.run(main())


def test_a_start_gives_the_first_worker_the_process_that_was_started_ahead(tmp_path: Path) -> None:
    state = tmp_path / "state"
    spare = Spare(launching.make_path(launching.path_in(state)), {MARK: str(state)})
    started: list[bool] = []

    def launch(spec: launching.Spec) -> launching.Started:
        found = spare.launch(spec)
        started.append(found.late is not None)
        return found

    async def main() -> None:
        bench = Bench(tmp_path, launch)
        made = group(1, "echo", tmp_path)
        [echo] = made.deployment.functions
        made = replace(
            made, deployment=replace(made.deployment, functions=(replace(echo, isolation=None, processes=2),))
        )
        await bench.activation.begin(made)
        await bench.activation.promote(made)
        assert isinstance(await bench.ask("echo", {}), Answer)
        await bench.activation.stop(5)

    asyncio.run(main())
    assert started == [True, False]
