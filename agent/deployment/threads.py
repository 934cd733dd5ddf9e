"""What blocks or can wait, in threads and processes.

A thread is never left behind: whoever is cancelled has still seen it end.
"""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, ParamSpec, TypeVar, cast

from agent.loop import Loop
from functions.aside import aside, starting

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `call` gives, from a thread.

    A thread cannot be cancelled. asyncio.to_thread would let go of it, and the state directory would be written by it
    and by whoever comes next; here a cancellation arrives once the call has ended.
    """
    work = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        if not work.cancelled():
            work.exception()  # looked at: nobody else will
        raise


async def in_thread_aside(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `in_thread`, out of the way of requests: for what reads, writes or removes much while others serve."""

    _before_others()

    def done() -> T:
        with aside():
            return call(*args, **kwargs)

    return await in_thread(done)


@types.coroutine
def starting_aside(coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Awaits a coroutine that starts a process in its first step, which is within `functions.aside.starting`."""
    _before_others()  # ahead of the first step, which looks at what this thread may run on
    step: Callable[[Any], Any] = coroutine.send
    value: Any = None
    within: contextlib.AbstractContextManager[None] = starting()
    while True:
        try:
            with within:
                waits_for = step(value)
        except StopIteration as end:
            return cast(T, end.value)
        try:
            step, value = coroutine.send, (yield waits_for)
        except BaseException as error:
            step, value = coroutine.throw, error
        within = contextlib.nullcontext()


def _before_others() -> None:
    loop = asyncio.get_running_loop()
    if isinstance(loop, Loop):
        loop.before_others()
