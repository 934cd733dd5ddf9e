"""One agent for one state directory: its lock, and the end of what an earlier agent left running."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
from pathlib import Path

from agent.errors import ConfigError

MARK = "MARRAM_STATE"  # in the environment of every worker, and so of whatever a worker starts


def claim(state: Path) -> list[int]:
    """Makes the state directory this agent's alone: what an earlier one left running there, and its workers' views, go.

    Blocks for next to no time. To be called once, before anything else is done with the directory.

    Returns:
        The PIDs of what was left running.

    Raises:
        ConfigError: as `lock_state`.
    """
    lock_state(state)
    ended = end_orphans(state)
    shutil.rmtree(state / "run", ignore_errors=True)
    return ended


def lock_state(state: Path) -> int:
    """Takes the lock of the state directory, making the directory where it is missing; returns the lock's descriptor.

    The lock goes with the process. Does not wait.

    Raises:
        ConfigError: STATE_IN_USE, STATE_UNUSABLE.
    """
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o755)
        descriptor = os.open(state / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            "STATE_UNUSABLE",
            f"The state directory {state} cannot be used: {error.strerror}.",
            "Set 'state' in topics.yaml.",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(
            "STATE_IN_USE",
            f"Another agent runs on the state directory {state}.",
            "Stop it first, or set another 'state'.",
        ) from error
    return descriptor


def end_orphans(state: Path) -> list[int]:
    """Kills what still runs of an earlier agent on this state directory. To be called with the lock held."""
    ended: list[int] = []
    mark = f"{MARK}={state}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
                ended.append(int(entry.name))
    return ended
