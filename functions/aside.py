"""Work that can wait, in the way of nobody: on half of the processors, and such that whoever wakes up goes first.

A low priority is not enough. What runs goes on to its kernel's next tick (4 ms with 250 a second) unless the kernel
finds that who has woken up comes first, be another processor idle or not; and where sessions are scheduled apart
(autogroup, or a control group for each service) a niceness counts within one only. Who asks for long slices comes after
those with shorter ones at once, and so does a session of little weight. See docs/decisions/0019. It takes no right,
neither to go aside nor to come back.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Collection, Iterator

SLICE_NS = 100_000_000  # the longest that Linux takes, from 6.12 on; before, it takes none and says nothing
LEAST_WEIGHT = 19  # a niceness, sched(7): a sixty-eighth of what others have
KEEP_POLICY = 0x08  # linux/sched.h
# sched_setattr by machine and whether this is a 64-bit process; Python and most C libraries have no function for it.
NUMBERS = {
    ("x86_64", True): 314, ("aarch64", True): 274, ("aarch64", False): 380, ("armv7l", False): 380,
    ("armv6l", False): 380,
}  # fmt: skip


def half(allowed: Collection[int]) -> set[int]:
    """The upper half of these processors, as the lower ones are often those that serve the devices; one stays one."""
    return set(sorted(allowed)[-max(1, len(allowed) // 2) :])


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Within it, this thread starts what is to be `put` aside: on its processors from the first moment on."""
    allowed = os.sched_getaffinity(0)
    _run_on(half(allowed))
    try:
        yield
    finally:
        _run_on(allowed)
        make_room()


def make_room() -> None:
    """Has this thread leave the processors of what is aside, for now: who waits there has its share of them first."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) > 1:
        _run_on(allowed - half(allowed))
        _run_on(allowed)


def put(pid: int) -> bool:
    """Sets a process aside that was just started, within `starting` and in a session of its own.

    Returns:
        Whether its session has the least weight now; `give_weight_back` takes that back.
    """
    _set_slice(SLICE_NS, pid)
    return _weigh(pid, LEAST_WEIGHT)


def give_weight_back(pid: int) -> bool:
    """Whether the session of this process weighs what others do; the kernel refuses it while it was asked just now."""
    return _weigh(pid, 0) or not os.path.exists(f"/proc/{pid}")


def come_back(allowed: Collection[int]) -> None:
    """Lets this thread, though nothing that it has started, run as others do, on these processors."""
    _set_slice(0)  # the usual one
    _run_on(allowed)


def leave() -> None:
    """Sets all of this process aside for its end: its memory is taken apart where the last of its threads is."""
    processors = half(os.sched_getaffinity(0))
    with contextlib.suppress(OSError):  # a view without /proc
        for task in os.listdir("/proc/self/task"):
            _run_on(processors, int(task))
            _set_slice(SLICE_NS, int(task))
    _weigh("self", LEAST_WEIGHT)


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Within it, this thread is aside, and so is for good what it starts."""
    allowed = os.sched_getaffinity(0)
    _run_on(half(allowed))
    _set_slice(SLICE_NS)
    try:
        yield
    finally:
        come_back(allowed)


def _run_on(processors: Collection[int], task: int = 0) -> None:
    with contextlib.suppress(OSError, ValueError):  # taken from the machine or from us meanwhile, or the task has ended
        os.sched_setaffinity(task, processors)


def _weigh(pid: int | str, niceness: int) -> bool:
    """Sets what a session weighs beside others; False where none is scheduled apart, or for a tenth of a second."""
    try:
        with open(f"/proc/{pid}/autogroup", "w") as file:
            file.write(str(niceness))
    except OSError:
        return False
    return True


def _set_slice(slice_ns: int, task: int = 0) -> None:
    """Sets a thread's slice; without effect where it has none: on an older kernel, or in real time."""
    number = NUMBERS.get((os.uname().machine, sys.maxsize > 2**32))
    if number is None:
        return
    try:
        import ctypes

        niceness = os.getpriority(os.PRIO_PROCESS, task)
    except (ImportError, OSError):
        return
    # struct sched_attr, linux/sched/types.h: size, policy, flags, nice, priority, runtime, deadline, period
    attributes = struct.pack("=IIQiIQQQ", 48, 0, KEEP_POLICY, niceness, 0, slice_ns, 0, 0)
    ctypes.CDLL(None).syscall(number, task, attributes, 0)
