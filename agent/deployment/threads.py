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
    and by whoever comes next; here a cancellation arrives once the call has ended. It is
    done aside, see functions.aside.
    """

    def aside_too() -> T:
        with aside():
            return call(*args, **kwargs)

    work = asyncio.ensure_future(asyncio.to_thread(aside_too))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        if not work.cancelled():
            work.exception()  # looked at: nobody else will
        raise
