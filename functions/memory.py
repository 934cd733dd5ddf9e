"""Keeps freed memory for the next large message, in a process that has one after the other.

glibc gives what is large back to the kernel when it is freed, and each new page then costs a fault: 8 MB are 2,048 of
them, which take longer than to copy the bytes.
"""

from __future__ import annotations

import functools
from typing import Final

KEPT_BYTES: Final = 64 * 1024 * 1024
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST_BYTES: Final = 32 * 1024 * 1024  # glibc's DEFAULT_MMAP_THRESHOLD_MAX: it takes no more


@functools.cache
def keep_freed() -> None:
    """Has this process keep up to `KEPT_BYTES` of what it frees; does something once, and nothing without glibc."""
    try:
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
    except (ImportError, OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _MOST_BYTES)
    mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
