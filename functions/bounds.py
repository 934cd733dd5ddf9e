"""What a worker's process may be and take: its user, its resource limits, its rights. For good, once set.

Called while the process has one thread and before any of the function's code runs.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping, Sequence
from typing import Any

from functions.system_calls import LAST_CAPABILITY, Libc

NPROC_BY_NAMESPACE = (5, 14)  # from here on a user's processes are counted in each user namespace by itself


def set_limits(asked: Mapping[str, Any], *, count_tasks: bool) -> None:
    """Sets the limits that `asked` has: tasks, file_bytes, data_bytes. No core dumps, in any case.

    Args:
        count_tasks: whether the tasks (processes and threads) of this process's user are the function's alone.
    """
    _lower(resource.RLIMIT_CORE, 0)
    if asked.get("file_bytes"):
        _lower(resource.RLIMIT_FSIZE, asked["file_bytes"])
    if asked.get("data_bytes"):
        _lower(resource.RLIMIT_DATA, asked["data_bytes"])
    if asked.get("tasks") and count_tasks:
        _lower(resource.RLIMIT_NPROC, asked["tasks"])


def _lower(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def tasks_are_counted_apart() -> bool:
    """Whether the kernel counts a user's tasks for each user namespace."""
    return kernel_is_from(NPROC_BY_NAMESPACE)


def kernel_is_from(version: tuple[int, int]) -> bool:
    """Whether the kernel is of `version` or later; no where it does not say."""
    release = os.uname().release.split(".")[:2]
    try:
        return tuple(int(each) for each in release) >= version
    except ValueError:
        return False


def bound_rights(libc: Libc) -> None:
    """Keeps capabilities from ever coming back; to be called while this process still may."""
    libc.bound(range(LAST_CAPABILITY + 1))


def become(uid: int, gid: int, groups: Sequence[int]) -> None:
    """Changes this process's user, and its groups to `gid` and `groups`.

    Raises:
        OSError: it may not.
    """
    os.setgroups(sorted({gid, *groups}))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def drop_rights(libc: Libc) -> None:
    """Takes all capabilities off, and the ways to new ones."""
    libc.give_up(range(LAST_CAPABILITY + 1))
    libc.no_new_privileges()
