"""Has the next child be the first process of a PID namespace of its own, without a process between it and the agent.

The kernel puts the children of a thread into another namespace once the thread says so (unshare), until it says
otherwise (setns); the thread itself stays where it is. Ending the first process ends all others of its namespace, also
those that have hidden from it: what a function leaves running never outlives its worker.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator
from typing import Final

CLONE_NEWPID: Final = 0x20000000


@contextlib.contextmanager
def process_namespace() -> Iterator[None]:
    """Within it, this thread's next child gets a PID namespace; none where the machine does not allow it.

    Raises:
        OSError: the way back failed; this thread can start no more processes.
    """
    own = _own_namespace()
    if own < 0 or _libc().unshare(CLONE_NEWPID) != 0:
        yield
        return
    try:
        yield
    finally:
        if _libc().setns(own, CLONE_NEWPID) != 0:
            number = ctypes.get_errno()
            import logging  # 6 ms, ahead of a worker

            logging.getLogger(__name__).critical(
                "the agent cannot go back to its own process namespace: %s", os.strerror(number)
            )
            raise OSError(number, "setns")


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@functools.cache
def _own_namespace() -> int:
    """A descriptor of this process's own PID namespace; -1 where only root may use it."""
    if os.geteuid() != 0 or not hasattr(_libc(), "setns"):
        return -1
    try:
        return os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
