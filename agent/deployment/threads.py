"""Blocking work in a thread that is never left behind: whoever is cancelled has still seen it end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from functions.aside import aside

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

    def done() -> T:
        with aside():
            return call(*args, **kwargs)

    return await in_thread(done)
