"""Work that can wait, on some of the processors only, so that whoever answers requests finds another one free.

A low priority is not enough: the kernel lets what runs go on to its next tick (4 ms with 250 a second), whoever else
wakes up meanwhile, and where sessions are scheduled apart (autogroup) a niceness counts only within one. See
docs/decisions/0019. No right is needed, neither to go aside nor to come back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator


def half(allowed: Collection[int]) -> set[int]:
    """The upper half of these processors, as the lower ones are often those that serve the devices; one stays one."""
    return set(sorted(allowed)[-max(1, len(allowed) // 2) :])


def go() -> set[int]:
    """Keeps this thread, and what it starts from now on, to half of its processors; returns all that it had."""
    allowed = os.sched_getaffinity(0)
    come_back(half(allowed))
    return allowed


def come_back(allowed: Collection[int]) -> None:
    """Lets this thread run on these processors, as far as they are still the machine's and ours."""
    with contextlib.suppress(OSError, ValueError):
        os.sched_setaffinity(0, allowed)


@contextlib.contextmanager
def aside() -> Iterator[set[int]]:
    """Within it, this thread and what it starts keep to half of its processors; gives all that it had."""
    allowed = go()
    try:
        yield allowed
    finally:
        come_back(allowed)
