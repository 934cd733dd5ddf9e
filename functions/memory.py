"""How a process of ours has the C library keep its memory.

glibc gives what is large back to the kernel when it is freed, and each new page then costs a fault: 8 MB are 2,048 of
them, which take longer than to copy the bytes.
"""

from __future__ import annotations

import functools
from typing import Final

KEPT_BYTES: Final = 64 * 1024 * 1024
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MOST_BYTES: Final = 32 * 1024 * 1024  # glibc's DEFAULT_MMAP_THRESHOLD_MAX: it takes no more


@functools.cache
def keep_freed() -> None:
    """Has this process keep up to `KEPT_BYTES` of what it frees; does something once, and nothing without glibc."""
    _set(_M_MMAP_THRESHOLD, _MOST_BYTES)
    _set(_M_TRIM_THRESHOLD, KEPT_BYTES)


def share_one_arena() -> None:
    """Has all threads allocate from one place: else each gets its own, of 0.3 MB. For threads that rarely run at once.

    To be called before there are any; does nothing without glibc.
    """
    _set(_M_ARENA_MAX, 1)


def _set(parameter: int, value: int) -> None:
    try:
        import ctypes

        ctypes.CDLL(None).mallopt(parameter, value)
    except (ImportError, OSError, AttributeError):
        pass
