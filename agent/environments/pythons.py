"""Python interpreters of this machine: which there are, and of what version. Blocks; for the command line."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Final

from agent.errors import AgentError

CANDIDATES: Final = ("python3", "python3.13", "python3.12", "python3.11", "python3.10")
_VERSION: Final = "import sys; print(*sys.version_info[:2])"
DEADLINE_S: Final = 60.0


def find_python(fits: Callable[[tuple[int, int]], bool]) -> str | None:
    """The first Python whose version fits: the agent's own, else those on the search path."""
    if fits(sys.version_info[:2]):
        return sys.executable
    for name in CANDIDATES:
        path = shutil.which(name)
        version = _version(path) if path else None
        if path and version and fits(version):
            return path
    return None


def version_of(python: str) -> tuple[int, int]:
    """The version of an interpreter.

    Raises:
        AgentError: PYTHON_MISSING.
    """
    version = _version(python)
    if version is None:
        text = f"{python} cannot be started, or is no Python"
        raise AgentError(
            "PYTHON_MISSING", text, "Name a Python with --python, or install one: apt-get install python3-venv"
        )
    return version


@functools.cache
def _version(python: str) -> tuple[int, int] | None:
    """None where it cannot be started, as the stand-ins that version managers leave on the search path."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", _VERSION], capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        major, minor = (int(part) for part in done.stdout.split())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return major, minor
