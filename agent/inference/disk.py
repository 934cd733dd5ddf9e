"""How much a function keeps on the disk: looked at now and then; who writes on beyond its bound is stopped.

A file's own size is bounded by the kernel (RLIMIT_FSIZE), their number is not. A function that is over its bound and
does not grow is left alone, so that it can be made to clean up.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from agent.deployment.threads import in_thread
from agent.errors import FunctionError

LOOK_S: Final = 2.0
LOOKS_UNTIL_SURE: Final = 15  # the free space of the whole disk may hide what one function wrote, but not for ever
SLACK_BYTES: Final = 256 * 1024


class DiskWatch:
    """Looks at the directories of one function as long as it is in use. Runs on the loop's thread; looks in another.

    Args:
        limit_kb: what they may hold together, KiB.
        exceeded: called with DISK_SIZE_EXCEEDED each time that they have grown beyond it.
    """

    def __init__(
        self, function: str, directories: Sequence[Path], limit_kb: int, exceeded: Callable[[FunctionError], None]
    ) -> None:
        self._function = function
        self._directories = directories
        self._limit_kb = limit_kb
        self._exceeded = exceeded
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        before, looks = 0, 0
        while True:
            free = _free(self._directories[0])
            await asyncio.sleep(LOOK_S)
            looks += 1
            if free - _free(self._directories[0]) < SLACK_BYTES and looks % LOOKS_UNTIL_SURE:
                continue  # nobody wrote much: there is nothing to count
            used = await in_thread(used_kb, self._directories)
            if used > max(self._limit_kb, before):
                text = f"Function {self._function} keeps {used} KiB on the disk, its DiskSize is {self._limit_kb}."
                remedy = "Raise DiskSize under its Marram, or have it keep less; what it wrote is still there."
                self._exceeded(FunctionError("DISK_SIZE_EXCEEDED", text, remedy))
            before = used

    def close(self) -> None:
        """Looks no more."""
        self._task.cancel()


def _free(directory: Path) -> int:
    try:
        disk = os.statvfs(directory)
    except OSError:
        return 0
    return disk.f_bfree * disk.f_frsize


def used_kb(directories: Sequence[Path]) -> int:
    """What the directories take on the disk together, KiB; links are not followed. Blocks."""
    blocks = 0
    waiting = [str(each) for each in directories]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    blocks += entry.stat(follow_symlinks=False).st_blocks
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:
            continue  # gone meanwhile
    return blocks // 2
