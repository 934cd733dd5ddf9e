"""Work that can wait, in the way of nobody: on half of the processors, and in the shortest slices that there are.

A low priority is not enough. What runs goes on to its kernel's next tick (4 ms with 250 a second) whatever wakes up
meanwhile, be another processor idle or not; and where sessions are scheduled apart (autogroup, or a control group for
each service) a niceness counts within one only. A slice that has run out is none that the kernel protects. See
docs/decisions/0019. It takes no right, neither to go aside nor to come back.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Collection, Iterator

SLICE_NS = 100_000  # the shortest that Linux takes, from 6.12 on; before, it takes none and says nothing
KEEP_POLICY = 0x08  # linux/sched.h
# sched_setattr by machine and whether this is a 64-bit process; Python and most C libraries have no function for it.
NUMBERS = {
    ("x86_64", True): 314, ("aarch64", True): 274, ("aarch64", False): 380, ("armv7l", False): 380,
    ("armv6l", False): 380,
}  # fmt: skip


def half(allowed: Collection[int]) -> set[int]:
    """The upper half of these processors, as the lower ones are often those that serve the devices; one stays one."""
    return set(sorted(allowed)[-max(1, len(allowed) // 2) :])


def go() -> set[int]:
    """Sets this thread aside, and what it starts from now on; returns the processors that it had."""
    allowed = os.sched_getaffinity(0)
    _run_on(half(allowed))
    _set_slice(SLICE_NS)
    return allowed


def come_back(allowed: Collection[int]) -> None:
    """Lets this thread, though nothing that it has started, run as others do, on these processors."""
    _set_slice(0)  # the usual one
    _run_on(allowed)


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Within it, this thread is aside, and so is for good what it starts."""
    allowed = go()
    try:
        yield
    finally:
        come_back(allowed)


def _run_on(processors: Collection[int]) -> None:
    with contextlib.suppress(OSError, ValueError):  # taken from the machine or from us meanwhile
        os.sched_setaffinity(0, processors)


def _set_slice(slice_ns: int) -> None:
    """Sets this thread's slice; without effect where it has none: on an older kernel, or in real time."""
    number = NUMBERS.get((os.uname().machine, sys.maxsize > 2**32))
    if number is None:
        return
    try:
        import ctypes
    except ImportError:
        return
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    # struct sched_attr, linux/sched/types.h: size, policy, flags, nice, priority, runtime, deadline, period
    attributes = struct.pack("=IIQiIQQQ", 48, 0, KEEP_POLICY, niceness, 0, slice_ns, 0, 0)
    ctypes.CDLL(None).syscall(number, 0, attributes, 0)
