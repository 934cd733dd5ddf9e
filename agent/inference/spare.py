"""A worker's process that is started before it is known whom it will serve: its Python starts while the agent does.

There is one, at the agent's start, and the first worker that would be started just like it gets it: on the agent's own
Python, in a process namespace of its own, with no group beside the agent's. What is left, the function's variables and
directory, its CONFIG tells it, ahead of its isolation and of any library (`late`, see functions.startup). A function
with a variable that counts from a process's first moment on has a process started for it, as all others have.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from agent.inference import launching
from agent.inference.launching import Spec, Started
from agent.inference.requests import Origin

# What the loader (ld.so(8)), the C library, Python and functions.worker look at as they start, and only then.
AT_BIRTH: Final = ("LD_", "GLIBC_", "MALLOC_", "PYTHON", "LANG", "LC_", "LOCPATH", "GCONV_PATH", "TZ", "MARRAM_")
NOBODY: Final = Origin("", None, None, None)


class Spare:
    """The process, until it is taken or ended; none where it cannot be started.

    Belongs to the thread that starts workers.

    Args:
        path: directory that holds our package `functions` and nothing else.
        marks: variables that every worker of this agent has.
    """

    def __init__(self, path: Path, marks: Mapping[str, str]) -> None:
        environment = {**launching.base_environment(), **marks}
        self._spec = Spec(NOBODY, sys.executable, {}, path, path, environment, own_processes=True)
        self._started: Started | None = None
        with contextlib.suppress(OSError):
            self._started = launching.start(self._spec)

    def launch(self, spec: Spec) -> Started:
        """The process where it does for this worker and is still to be had, else a new one. As `launching.start`."""
        started = self._started
        if started is None or not self._does_for(spec):
            return launching.start(spec)
        self._started = None
        environment = {name: value for name, value in spec.environment.items() if name in self._own_to(spec)}
        return replace(started, late={"environment": environment, "directory": str(spec.directory)})

    def _does_for(self, spec: Spec) -> bool:
        own = self._spec
        return (
            (spec.interpreter, spec.path, spec.own_processes) == (own.interpreter, own.path, own.own_processes)
            and not spec.groups
            and not spec.aside
            and own.environment.keys() <= spec.environment.keys()
            and not any(name.startswith(AT_BIRTH) for name in self._own_to(spec))
        )

    def _own_to(self, spec: Spec) -> set[str]:
        """The names of its variables that the process does not have yet, or otherwise."""
        known = self._spec.environment
        return {name for name, value in spec.environment.items() if known.get(name) != value}

    def end(self) -> None:
        """Ends the process where nobody has taken it. Blocks for a millisecond then; idempotent."""
        started, self._started = self._started, None
        if started is not None:
            started.process.kill()
            started.process.wait()
            assert started.process.stdout is not None
            for each in (started.wire, started.pulse, started.process.stdout):
                each.close()


def pays() -> bool:
    """Whether anything is gained by it: on one processor it would take from the agent what it gives the worker."""
    return len(os.sched_getaffinity(0)) > 1
