"""A deployed group as running workers: warm beside those that run, in use, draining; the turn from one to the next.

Runs on the event loop's thread. What a worker is started with is agent.worker_specs' matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agent import trial
from agent.capture.policy import Capture
from agent.deployment import overlays, secrets
from agent.deployment.definition import Function, Probation
from agent.deployment.store import Group
from agent.deployment.threads import in_thread, in_thread_aside
from agent.errors import AgentError, FunctionError
from agent.inference import launching, views, workers
from agent.inference.disk import DiskWatch
from agent.inference.dispatch import Dispatcher
from agent.inference.nearness import Nearness
from agent.inference.pool import Pool, PoolLimits
from agent.inference.requests import FunctionCall, Request, Worker
from agent.inference.vitals import resident_kb
from agent.loop import Loop
from agent.messages import BINARY, JSON
from agent.settings import Settings
from agent.worker_specs import Generation, Specs, origin_of

if TYPE_CHECKING:
    from agent.routing.function_calls import Callee
    from agent.routing.outcomes import FunctionTraits

log = logging.getLogger(__name__)


class LoopClock:
    """The event loop's time and timers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = time.monotonic  # what `loop.time` returns, with one call less
        self.later: Callable[[float, Callable[[], None]], Any] = loop.call_later


class Activation:
    """Starts, promotes and ends the workers of groups.

    Args:
        routed: called after a promotion with the group now in use; it sets subscriptions and waits for the brokers.
        changed: called whenever the state of a function may have changed.
        called: takes what functions ask of the agent.
        launch: starts a worker's process.
    """

    def __init__(
        self,
        settings: Settings,
        dispatcher: Dispatcher,
        *,
        loop: asyncio.AbstractEventLoop,
        routed: Callable[[Group], Any],
        changed: Callable[[], None],
        called: Callable[[FunctionCall], None] | None = None,
        launch: launching.Launch = launching.start,
    ) -> None:
        self.group: Group | None = None
        self._settings = settings
        self._dispatcher = dispatcher
        self._loop = loop
        self._clock = LoopClock(loop)
        self._nearness = Nearness(self._clock, os.sched_getaffinity(0))
        if isinstance(loop, Loop):
            loop.before_thread = self._nearness.part
            loop.before_others = self._nearness.make_way
        self._routed = routed
        self._changed = changed
        self._generations = 0
        self._warm: dict[int, Generation] = {}
        self._routed_to: Generation | None = None
        self._draining: dict[Pool, Generation] = {}
        self._served: set[Generation] = set()  # have been routed to, so that requests may be with them
        self._news = asyncio.Event()
        self._specs = Specs(settings, called)
        self._launch = launch
        views.make_stage(settings.state)

    # -- a deployment's turn ----------------------------------------------------------------------------------------

    async def warm(self, group: Group) -> None:
        """Starts the group's workers beside those that run; returns when all are ready. Those kept are ready already.

        Raises:
            AgentError: why the first of them that failed did.
        """
        if group.number in self._warm:
            return
        await in_thread_aside(overlays.prepare, self._settings.state, group)
        opened = self._open(group, await self._open_secrets(group))
        for pool in opened.pools:
            pool.held = True  # on trial: a worker on demand stays until it is in use
            pool.open()
        await self._all_ready(opened.pools)

    async def _all_ready(self, pools: Sequence[Pool]) -> None:
        """Returns when all workers that should be there are.

        Raises:
            AgentError: why one of them was lost.
        """
        while True:
            self._news.clear()
            for pool in pools:
                if pool.last_loss is not None and not pool.all_ready:
                    raise pool.last_loss
            if all(pool.all_ready for pool in pools):
                return
            await self._news.wait()

    async def check(self, group: Group) -> None:
        """Has every worker of the group, warm or in use, pass the health checks of its models.

        Raises:
            AgentError: HEALTH_CHECK_FAILED, HEALTH_CHECK_SLOW, HEALTH_CHECK_TIMEOUT, or why a worker was lost in it.
        """
        generation = self._warm.get(group.number) or self._routed_to
        if generation is not None:
            with _held(generation.pools):
                for pool in generation.pools:
                    if pool.on_demand:
                        pool.wake()
                await self._all_ready([pool for pool in generation.pools if pool.on_demand])
                await trial.examine(group, generation.pools)

    async def begin(self, group: Group) -> None:
        """Starts the group's workers ahead of `promote`, which takes them; returns when they are on their way."""
        for pool in self._open(group, await self._prepare_if_it_can(group)).pools:
            if not pool.on_demand:
                pool.open()

    async def promote(self, group: Group) -> None:
        """Routes to the group's workers, warm or not yet; those of before are kept. Returns when the brokers know."""
        if group.number not in self._warm:
            await self.begin(group)
        fresh = self._warm.pop(group.number)
        for pool in fresh.pools:
            pool.held = False
        before = self._routed_to
        self._dispatcher.promote(fresh.pools)
        self.group, self._routed_to = group, fresh
        self._served.add(fresh)
        if before is not None and before.group.number == group.number:
            self._end(before)
        elif before is not None:
            self._warm[before.group.number] = before
        await self._routed(group)
        self._changed()

    async def observe(self, group: Group, bounds: Probation) -> None:
        """Watches the group's workers at work, until the probation is over.

        Raises:
            AgentError: PROBATION_CRASH_LOOP, PROBATION_ERROR_RATE, PROBATION_SLOW; and of the golden requests, which
                are run again where there was next to nothing to do, as `check`.
        """
        generation = self._routed_to
        if generation is None or generation.group.number != group.number:
            return
        if await trial.watch(generation.pools, bounds):
            await self.check(group)

    async def discard(self, group: Group) -> None:
        """Ends the group's warm workers; what they were sent as long as they were in use is still answered."""
        unwanted = self._warm.pop(group.number, None)
        if unwanted is not None:
            self._end(unwanted)

    async def release(self, group: Group) -> None:
        """Lets the workers drain that were kept for the way back from this group."""
        for number in [number for number in self._warm if number != group.number]:
            self._end(self._warm.pop(number))

    def in_use(self) -> set[int]:
        """The numbers of the groups whose workers, or some of them, still run."""
        routed = [self._routed_to] if self._routed_to else []
        return {each.group.number for each in (*self._warm.values(), *self._draining.values(), *routed)}

    async def stop(self, grace_s: float) -> None:
        """Drains all workers; ends what is left after `grace_s`. What was not run stays with broker or inbox."""
        warm = [self._warm.pop(number) for number in list(self._warm)]
        for generation in (*warm, self._routed_to):
            if generation is not None:
                self._let_drain(generation, lambda request: None)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._all_drained(), grace_s)
        for pool in list(self._draining):
            pool.kill(FunctionError("STOPPED", "The agent is stopping."))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._all_drained(), 1.0)

    def _end(self, generation: Generation) -> None:
        """Lets it answer what it was sent; one that never was in use is ended at once."""
        self._let_drain(generation, self._dispatcher.submit)
        if generation not in self._served:
            for pool in generation.pools:
                pool.kill(FunctionError("DISCARDED", "The deployment of this worker failed."))
        self._served.discard(generation)

    def _let_drain(self, generation: Generation, heir: Callable[[Request], None]) -> None:
        self._draining.update(dict.fromkeys(generation.pools, generation))
        for pool in generation.pools:
            pool.drain(heir, lambda pool=pool: self._drained(pool))  # type: ignore[misc]

    async def _all_drained(self) -> None:
        while self._draining:
            self._news.clear()
            await self._news.wait()

    def _drained(self, pool: Pool) -> None:
        generation = self._draining.get(pool)
        if generation is None:
            self._tell()
            return
        if watch := generation.disks.pop(pool, None):
            watch.close()
        # In a thread: it waits for the kernel to take the worker's mounts apart, 10 ms while objects are pruned.
        view = self._specs.view(pool.origin.function, generation)
        removed = self._loop.run_in_executor(None, functools.partial(shutil.rmtree, view, ignore_errors=True))
        removed.add_done_callback(lambda _: self._gone(pool))

    def _gone(self, pool: Pool) -> None:
        self._draining.pop(pool, None)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._changed()

    def remarks(self, group: Group) -> tuple[str, ...]:
        """What the group's warm workers could not make of their view of the files, for the deployment's warnings."""
        warm = self._warm.get(group.number)
        return tuple(warm.remarks) if warm else ()

    def workers(self) -> dict[str, dict[str, Any]]:
        """What the workers of each function in use are and take, for whoever asks; reads a file or two for each."""
        if self.group is None:
            return {}
        limits = {function.id: function for function in self.group.deployment.functions}
        return {
            name: {
                "pids": pool.pids(),
                "memory_kb": [resident_kb(pid) for pid in pool.pids()],
                "memory_limit_kb": limits[name].memory_kb if name in limits else None,
                "pinned": not pool.on_demand,
                "isolation": pool.isolation,
                "waiting": pool.waiting,
            }
            for name, pool in sorted(self._dispatcher.pools.items())
        }

    # -- what a worker is started with ------------------------------------------------------------------------------

    def traits(self, group: Group) -> dict[str, FunctionTraits]:
        """What the exchange needs to know of the group's functions."""
        return {function.id: _traits(function) for function in group.deployment.functions}

    def captures(self, group: Group) -> dict[str, tuple[Capture, str | None]]:
        """The capture policies of the group's functions, each with the version of the function's model."""
        return {
            function.id: (function.capture, origin_of(function, group).version)
            for function in group.deployment.functions
            if function.capture is not None
        }

    def callees(self, group: Group) -> list[Callee]:
        """The group's functions as they may invoke one another."""
        from agent.routing.function_calls import Callee  # 4 ms, while the workers start

        return [Callee(f.id, f.arn, f.timeout_s, f.processes) for f in group.deployment.functions]

    async def _prepare_if_it_can(self, group: Group) -> secrets.Opened:
        """At a start there is no other group to keep: a function without what it needs fails, and the rest runs."""
        try:
            await in_thread(overlays.prepare, self._settings.state, group)
        except (AgentError, OSError) as error:
            log.error("the functions' own copies of models cannot be made: %s", error)
        try:
            return await self._open_secrets(group)
        except AgentError as error:
            log.error("the functions' secrets cannot be opened: %s", error)
            return secrets.Opened({}, error)

    async def _open_secrets(self, group: Group) -> secrets.Opened:
        if not group.secrets:
            return secrets.Opened({})  # at once: most groups have none
        return await in_thread(secrets.open_all, self._settings.state, group)

    def _open(self, group: Group, opened_secrets: secrets.Opened) -> Generation:
        self._generations += 1
        opened = Generation(group, self._generations, opened_secrets)
        opened.pools.extend(self._pool(function, opened) for function in group.deployment.functions)
        self._warm[group.number] = opened
        return opened

    def _pool(self, function: Function, generation: Generation) -> Pool:
        origin = origin_of(function, generation.group)
        keep_alive_s = None if function.pinned else function.keep_alive_s
        limits = PoolLimits(function.processes, keep_alive_s, function.timeout_s, function.batch.max_size)

        def start(pool: Pool) -> Worker:
            try:
                aside = self._others_serve(generation)
                asked = replace(spec(), aside=aside)
                return workers.start(asked, pool, loop=self._loop, nearness=self._nearness, launch=self._launch)
            except AgentError as error:
                return workers.not_started(error, pool, loop=self._loop)
            except OSError as error:
                text = f"What function {function.id} needs cannot be laid out: {error}."
                reason = AgentError("STATE_UNWRITABLE", text, "Check the disk and the state directory's permissions.")
                return workers.not_started(reason, pool, loop=self._loop)

        @functools.cache
        def spec() -> launching.Spec:
            return self._specs.of(function, generation, origin)

        pool = Pool(origin, limits, start, self._clock, random.random, self._tell)
        if function.disk_kb is not None:
            kept = [self._specs.home(function)]
            models = views.models_of(function, generation.group, self._settings.state)
            kept += [each.tree for each in models if each.writable]
            generation.disks[pool] = DiskWatch(function.id, kept, function.disk_kb, pool.end_workers)
        return pool

    def _others_serve(self, generation: Generation) -> bool:
        """Whether requests go to another generation, so that this one has time to start."""
        return self._routed_to is not None and self._routed_to is not generation


@contextlib.contextmanager
def _held(pools: Sequence[Pool]) -> Iterator[None]:
    """Keeps idle workers meanwhile."""
    before = [pool.held for pool in pools]
    for pool in pools:
        pool.held = True
    try:
        yield
    finally:
        for pool, held in zip(pools, before, strict=True):
            pool.held = held


def _traits(function: Function) -> FunctionTraits:
    from agent.routing.outcomes import FunctionTraits  # as above

    encoding = JSON if function.encoding == "json" else BINARY
    return FunctionTraits(encoding, function.endpoint, function.capture is not None)
