"""A group on trial: its workers' health checks, and the watch over them at work.

Runs on the event loop's thread and blocks nothing. What is good enough is decided elsewhere: the workers compare what
their models answer (functions.health), and agent.inference.probation judges the requests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from agent.deployment.definition import Probation
from agent.deployment.health import encode, overrides_of
from agent.deployment.store import Group
from agent.deployment.threads import in_thread
from agent.errors import AgentError, FunctionError
from agent.inference.pool import Pool
from agent.inference.probation import Watch
from agent.inference.requests import Examination, Worker

CHECK_S: Final = 120.0  # for all health checks of a group together


async def examine(group: Group, pools: Sequence[Pool]) -> None:
    """Has every worker of the pools pass the health checks of its models.

    Raises:
        AgentError: HEALTH_CHECK_FAILED, HEALTH_CHECK_SLOW, HEALTH_CHECK_TIMEOUT, or why a worker was lost in it.
    """
    examinations = await in_thread(_examinations, group)
    if not examinations:
        return
    running = [
        _examined(worker, examination)
        for pool in pools
        for policy in group.deployment.function(pool.origin.function).policies
        for examination in examinations.get(policy.resource, ())
        for worker in _ready_workers(pool)
    ]
    try:
        await asyncio.wait_for(asyncio.gather(*running), CHECK_S)
    except asyncio.TimeoutError:
        text = f"the health checks took longer than {CHECK_S:g} s"
        raise AgentError("HEALTH_CHECK_TIMEOUT", text, "Record fewer requests, or see why the model hangs.") from None


async def watch(pools: Sequence[Pool], bounds: Probation) -> bool:
    """Watches the pools at work until the probation is over; returns whether too little came to prove anything.

    Raises:
        AgentError: PROBATION_CRASH_LOOP, PROBATION_ERROR_RATE, PROBATION_SLOW.
    """
    watched = _Watched(bounds)
    for pool in pools:
        pool.observer = watched
    try:
        await watched.over()
    finally:
        for pool in pools:
            pool.observer = None
    watched.watch.check()
    return watched.watch.too_few


class _Watched:
    """What a pool's observer calls go to, and the end of the watch as something to wait for."""

    def __init__(self, bounds: Probation) -> None:
        self._now = asyncio.get_running_loop().time
        self.watch = Watch(bounds, self._now())
        self._decided = asyncio.Event()

    def settled(self, error: AgentError | None, latency_s: float) -> None:
        self.watch.settled(error, latency_s)
        self._look()

    def lost(self, function: str, reason: AgentError) -> None:
        self.watch.lost(function, reason, self._now())
        self._look()

    def _look(self) -> None:
        if self.watch.decided(self._now()):
            self._decided.set()

    async def over(self) -> None:
        """Returns when it is decided, or its time is over."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._decided.wait(), max(0.0, self.watch.ends_s - self._now()))


def _examined(worker: Worker, examination: Examination) -> asyncio.Future[None]:
    passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(wrong: AgentError | None) -> None:
        if passed.done():
            return
        if wrong is None:
            passed.set_result(None)
        else:
            passed.set_exception(wrong)

    worker.examine(examination, done)
    return passed


def _ready_workers(pool: Pool) -> list[Worker]:
    """Those that can be examined.

    Raises:
        AgentError: there is none, and why.
    """
    found = pool.ready_workers()
    if not found:
        raise pool.last_loss or FunctionError("FUNCTION_FAILED", f"Function {pool.origin.function} has no worker.")
    return found


def _examinations(group: Group) -> dict[str, list[Examination]]:
    """The health checks of each resource: what its package carries, then what the document asks for. Blocks."""
    found: dict[str, list[Examination]] = {}
    for resource in group.deployment.resources:
        own, packed = resource.health, group.objects[resource.id].health
        overrides = overrides_of(own) if own else {}
        checks = [packed.read_bytes()] if packed.exists() else []
        checks += [encode(own)] if own and own.requests else []
        if checks:
            found[resource.id] = [Examination(resource.id, overrides, check) for check in checks]
    return found
