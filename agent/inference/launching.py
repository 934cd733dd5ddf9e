"""How a worker process is started: its command line, its environment, its path. By exec, never by a mere fork.

Blocks for the start of a process, a millisecond.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Final

import functions
from agent.inference.process_namespaces import process_namespace
from agent.inference.requests import FunctionCall, Origin
from agent.values import dataclass
from functions import aside

BOOT: Final = "import sys; sys.path.insert(0, sys.argv[1]); from functions.worker import main; main()"
SOCKET_BYTES: Final = 4 * 1024 * 1024
THREADS: Final = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS", "MXNET_CPU_WORKER_NTHREADS",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spec:
    """What it takes to start a worker.

    Attributes:
        origin: what its results say about where they come from.
        interpreter: the Python to run it on.
        config: the CONFIG frame's map, see functions.worker.
        environment: all of the worker's environment; nothing of the agent's is added.
        path: directory that holds our package `functions` and nothing else.
        directory: its working directory.
        memory_kb: resident memory it may take, KiB; None: unlimited.
        start_s: how long it may take until it is ready, seconds.
        groups: GIDs that it has beside the agent's own.
        called: takes what the function asks of the agent; returns at once.
        own_processes: whether it is the first process of a namespace, where only its own are seen and all end with it;
            left out where this machine does not allow it.
        seen: called before it counts as ready with the tier of its isolation and what could not be done of it.
        aside: whether it keeps out of the way of others that serve, until the function's own code comes.
    """

    origin: Origin
    interpreter: str
    config: Mapping[str, Any] = field(repr=False)
    path: Path
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    memory_kb: int | None = None
    start_s: float = 120.0
    groups: Collection[int] = ()
    called: Callable[[FunctionCall], None] | None = None
    own_processes: bool = False
    seen: Callable[[str, Sequence[str]], None] = lambda tier, warnings: None
    aside: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """A worker's process with the agent's ends of its two socket pairs.

    Attributes:
        late: what it could not be started with, for its CONFIG: see functions.startup.
        light: whether its session has little weight beside others, until `functions.aside.give_weight_back`.
    """

    process: subprocess.Popen[bytes]
    wire: socket.socket
    pulse: socket.socket
    late: Mapping[str, Any] | None = None
    light: bool = False


Launch = Callable[[Spec], Started]


def path_in(state: Path) -> Path:
    """Where workers find our package `functions`."""
    return state / "run" / ".path"


def make_path(directory: Path) -> Path:
    """Makes `directory` lead to our package `functions` and to nothing else, and returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    link, package = directory / "functions", Path(functions.__file__).parent
    if not link.is_symlink() or Path(os.readlink(link)) != package:
        if link.is_dir() and not link.is_symlink():
            shutil.rmtree(link)
        link.unlink(missing_ok=True)
        link.symlink_to(package)
    return directory


def base_environment() -> dict[str, str]:
    """What every worker gets: a locale, a search path and one thread for each numeric library."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR") if name in os.environ}
    return {"PATH": os.defpath, "PYTHONUNBUFFERED": "1", **dict.fromkeys(THREADS, "1"), **kept}


def start(spec: Spec) -> Started:
    """Starts the process with a socket pair for frames and one for its pulse.

    Raises:
        OSError: the interpreter cannot be started.
    """
    wire, theirs = pair()
    pulse, their_pulse = pair()
    try:
        with theirs, their_pulse:
            process = launch(spec, theirs, their_pulse)
        return Started(process, wire, pulse, light=spec.aside and aside.put(process.pid))
    except OSError:
        wire.close()
        pulse.close()
        raise


def pair() -> tuple[socket.socket, socket.socket]:
    """The agent's end, which does not block, and a worker's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    return ours, theirs


def launch(spec: Spec, sock: socket.socket, pulse: socket.socket) -> subprocess.Popen[bytes]:
    """Starts the process with its ends of the two socket pairs; its output comes through a pipe.

    Raises:
        OSError: the interpreter cannot be started.
    """
    environment = {**spec.environment, "MARRAM_FD": str(sock.fileno()), "MARRAM_PULSE_FD": str(pulse.fileno())}
    if spec.aside:
        environment["MARRAM_ASIDE"] = " ".join(map(str, os.sched_getaffinity(0)))
    with (
        process_namespace() if spec.own_processes else contextlib.nullcontext(),
        aside.starting() if spec.aside else contextlib.nullcontext(),
    ):
        return subprocess.Popen(
            [spec.interpreter, "-IBu", "-c", BOOT, str(spec.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=spec.directory,
            pass_fds=(sock.fileno(), pulse.fileno()),
            start_new_session=True,
            extra_groups=[*os.getgroups(), *spec.groups] if spec.groups else None,
        )


def open_pidfd(pid: int) -> int:
    """A descriptor that is readable once the process has ended; -1 where the kernel has none (before 5.3)."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1
