"""Worker processes: started by exec, spoken to over one socket pair each, and told apart in how they end.

Runs on the event loop's thread; nothing here blocks but the start of a process (a millisecond). Frames are gathered:
what one turn of the loop sends leaves in one write, and all answers that wait are read at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

import functions
from agent.errors import AgentError, FunctionError
from agent.inference.dispatch import Answer, Examination, Failure, Origin, Pool, Request, Worker
from functions import frames

log = logging.getLogger(__name__)

BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from functions.worker import main; main()"
START_S = 120.0  # import, model load and warm-up; TensorFlow on a Raspberry Pi takes most of a minute
PULSE_S = 0.25  # a living interpreter answers within a switch interval or two
DRAIN_S = 30.0
MEMORY_CHECK_S = 0.2
SOCKET_BYTES = 4 * 1024 * 1024
KEPT_LINES = 20
PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
Examined = Callable[[AgentError | None], None]
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS", "MXNET_CPU_WORKER_NTHREADS")


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
        groups: GIDs that it has beside the agent's own.
        seen: called before it counts as ready with how far its view of the files is its own (the tier) and what could
            not be done of it.
    """

    origin: Origin
    interpreter: str
    config: Mapping[str, Any]
    path: Path
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    memory_kb: int | None = None
    groups: Collection[int] = ()
    seen: Callable[[str, Sequence[str]], None] = lambda tier, warnings: None


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


class WorkerProcess:
    """One worker process and its end of the socket pair."""

    def __init__(self, spec: Spec, pool: Pool, *, loop: asyncio.AbstractEventLoop) -> None:
        self.spec = spec
        self._pool = pool
        self._loop = loop
        self._reader = frames.FrameReader()
        self._out: list[memoryview] = []
        self._flushing = False
        self._blocked = False
        self._ready = False
        self._stopping = False
        self._reason: AgentError | None = None
        self._examined = 0
        self._examinations: dict[int, Examined] = {}
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._timers: list[asyncio.TimerHandle] = []
        self._sock, theirs = _pair()
        self._pulse, their_pulse = _pair()
        try:
            self._process = self._start(theirs, their_pulse)
        finally:
            theirs.close()
            their_pulse.close()
        self.pid = self._process.pid
        assert self._process.stdout is not None
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._watch()
        self._write(frames.pack([frames.CONFIG, dict(spec.config)]))

    def _start(self, sock: socket.socket, pulse: socket.socket) -> subprocess.Popen[bytes]:
        environment = {
            **self.spec.environment,
            "MARRAM_FD": str(sock.fileno()),
            "MARRAM_PULSE_FD": str(pulse.fileno()),
        }
        return subprocess.Popen(
            [self.spec.interpreter, "-IBu", "-c", BOOT, str(self.spec.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=self.spec.directory,
            pass_fds=(sock.fileno(), pulse.fileno()),
            start_new_session=True,
            extra_groups=[*os.getgroups(), *self.spec.groups] if self.spec.groups else None,
        )

    def _watch(self) -> None:
        self._loop.add_reader(self._sock, self._on_readable)
        self._loop.add_reader(self._output.fileno(), self._on_output)
        self._pidfd = _pidfd(self.pid)
        if self._pidfd >= 0:
            self._loop.add_reader(self._pidfd, self._on_exit)
        self._after(START_S, self._start_is_late)
        if self.spec.memory_kb is not None:
            self._after(MEMORY_CHECK_S, self._check_memory)

    def _after(self, delay_s: float, run: Any, *args: Any) -> None:
        self._timers = [t for t in self._timers if not t.cancelled() and t.when() > self._loop.time()]
        self._timers.append(self._loop.call_later(delay_s, run, *args))

    # -- to the worker ----------------------------------------------------------------------------------------------

    def send(self, n: int, request: Request) -> None:
        header = [frames.REQUEST, n, request.topic, request.content_type, request.id, request.wants_answer]
        self._write(frames.pack(header, request.payload))

    def examine(self, examination: Examination, done: Examined) -> None:
        """Has it run a health check; `done` gets what is wrong, or why it was lost."""
        self._examined += 1
        n = self._examined
        self._examinations[n] = done
        header = [frames.CHECK, n, examination.resource, dict(examination.overrides)]
        self._write(frames.pack(header, examination.check))

    def stop(self) -> None:
        """Lets it finish what it was sent; it is killed when that takes longer than DRAIN_S."""
        if not self._stopping:
            self._stopping = True
            self._write(frames.pack([frames.STOP]))
            self._after(
                DRAIN_S, self.kill, FunctionError("DRAIN_TIMEOUT", "The worker did not end when it was told to.")
            )

    def kill(self, reason: AgentError) -> None:
        if self._reason is None:
            self._reason = reason
        self._signal(signal.SIGKILL)

    def check(self, late: FunctionError) -> None:
        """Asks for its pulse, then kills it for `late`, or for WORKER_HUNG where no answer comes."""
        self._after(PULSE_S, self._pulse_failed)
        self._loop.add_reader(self._pulse, self._on_pulse, late)
        with contextlib.suppress(OSError):
            self._pulse.send(b"?")

    def _on_pulse(self, late: FunctionError) -> None:
        self._loop.remove_reader(self._pulse)
        with contextlib.suppress(OSError, ValueError):
            where = msgpack.unpackb(self._pulse.recv(65536))
            late = FunctionError(late.code, f"{late.message} It was at {where}.", late.remedy)
        self.kill(late)

    def _pulse_failed(self) -> None:
        self._loop.remove_reader(self._pulse)
        self.kill(
            FunctionError(
                "WORKER_HUNG",
                f"A worker of function {self.spec.origin.function} neither finished in time nor answered its pulse: it "
                "is stopped, or stuck in native code.",
                "Look for a library call in it that never returns.",
            )
        )

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _write(self, buffers: list[bytes | bytearray | memoryview]) -> None:
        self._out.extend(memoryview(b) for b in buffers if len(b))
        if not self._flushing and not self._blocked:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        try:
            while self._out:
                sent = self._sock.sendmsg(self._out[: frames.IOV_MAX])
                self._out = frames.rest_after(self._out, sent)
        except (BlockingIOError, InterruptedError):
            if not self._blocked:
                self._blocked = True
                self._loop.add_writer(self._sock, self._on_writable)
        except OSError:
            self._out.clear()  # it is gone; its exit tells why

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._sock)
        self._blocked = False
        self._flush()

    # -- from the worker --------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(frames.READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._sock)
            self._on_end_of_stream()
            return
        try:
            for header, body in self._reader.feed(data):
                self._on_frame(header, body)
        except (frames.FrameError, LookupError, TypeError, ValueError) as error:
            self._loop.remove_reader(self._sock)
            self.kill(FunctionError("WORKER_CRASHED", f"The worker sent what is no frame: {error}."))

    def _on_frame(self, header: list[Any], body: bytes) -> None:
        kind = header[0]
        if kind == frames.RESULT:
            self._pool.on_result(self, header[1], self._answer(header, body))
        elif kind == frames.ERROR:
            _, n, request_id, reply_to, code, message = header
            failure = Failure(self.spec.origin, FunctionError(code, message), request_id, reply_to)
            self._pool.on_result(self, n, failure)
        elif kind == frames.READY:
            self._ready = True
            facts = header[1]
            name, tier = self.spec.origin.function, facts.get("tier", "none")
            log.info("function %s: worker %d is ready (own view of the files: %s)", name, self.pid, tier)
            self.spec.seen(tier, facts.get("warnings", ()))
            self._pool.on_ready(self, int(facts["max_batch"]))
        elif kind == frames.CHECKED:
            _, n, code, message = header
            self._examinations.pop(n)(FunctionError(code, message) if code else None)
        elif kind == frames.FAILED:
            self._reason = self._reason or FunctionError(header[1], header[2])

    def _answer(self, header: list[Any], body: bytes) -> Answer:
        _, _, request_id, reply_to, layout, plain = header
        outputs: list[tuple[str | None, str, bytes]] = []
        at = 0
        for topic, content_type, size in layout:
            outputs.append((topic, content_type, body if size == len(body) else body[at : at + size]))
            at += size
        answer = (plain[0], body[at : at + plain[1]]) if plain else None
        return Answer(self.spec.origin, request_id, reply_to, outputs, answer)

    def _on_output(self) -> None:
        try:
            data = os.read(self._output.fileno(), 65536)
        except (BlockingIOError, InterruptedError):
            return
        if not data:
            self._loop.remove_reader(self._output.fileno())
            return
        for line in data.decode(errors="replace").splitlines():
            self._lines.append(line)
            log.info("function %s [%d]: %s", self.spec.origin.function, self.pid, line)

    # -- its end ----------------------------------------------------------------------------------------------------

    def _start_is_late(self) -> None:
        if not self._ready:
            message = f"A worker of function {self.spec.origin.function} was not ready within {START_S:g} s."
            self.kill(
                FunctionError(
                    "WORKER_START_TIMEOUT", message, "Look at what it does at import, or at its model's size."
                )
            )

    def _check_memory(self) -> None:
        limit = self.spec.memory_kb
        assert limit is not None
        used = _resident_kb(self.pid)
        if used > limit:
            self.kill(
                FunctionError(
                    "OUT_OF_MEMORY",
                    f"A worker of function {self.spec.origin.function} took {used} KiB, its MemorySize is {limit}.",
                    "Raise MemorySize in its FunctionConfiguration, or make it take less.",
                )
            )
        else:
            self._after(MEMORY_CHECK_S, self._check_memory)

    def _on_end_of_stream(self) -> None:
        """It closed its end: it has ended, or never will by itself."""
        if self._pidfd < 0:
            self._signal(signal.SIGKILL)
            self._poll()
        else:
            self._after(1.0, self._signal, signal.SIGKILL)

    def _poll(self) -> None:  # kernels before 5.3 have no pidfd
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            self._after(0.02, self._poll)
        else:
            self._on_exit()

    def _on_exit(self) -> None:
        self._signal(signal.SIGKILL)  # what it may have started; its own pid stays taken until it is waited for
        code = self._process.wait()
        self._take_what_is_left()
        self._close()
        reason = self._reason or self._crash(code)
        if not self._stopping or self._reason is not None:
            log.warning("function %s: worker %d is gone: %s", self.spec.origin.function, self.pid, reason)
        for done in self._examinations.values():
            done(reason)
        self._pool.on_lost(self, reason)

    def _take_what_is_left(self) -> None:
        """Answers that it wrote before it ended still count."""
        self._on_output()
        with contextlib.suppress(OSError, frames.FrameError, LookupError, TypeError, ValueError):
            while data := self._sock.recv(frames.READ_BYTES):
                for header, body in self._reader.feed(data):
                    self._on_frame(header, body)

    def _crash(self, code: int) -> AgentError:
        how = f"was ended by signal {-code} ({_signal_name(-code)})" if code < 0 else f"ended with exit code {code}"
        said = f" Its last words: {' | '.join(list(self._lines)[-3:])}" if self._lines else ""
        hint = " The kernel does that when memory runs out." if code == -signal.SIGKILL else ""
        return FunctionError("WORKER_CRASHED", f"A worker of function {self.spec.origin.function} {how}.{hint}{said}")

    def _close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        for each in (self._sock, self._pulse):
            self._loop.remove_reader(each)
            self._loop.remove_writer(each)
            each.close()
        self._loop.remove_reader(self._output.fileno())
        self._output.close()


class _NotStarted:
    """Stands for a worker whose process could not be started at all."""

    pid = 0

    def send(self, n: int, request: Request) -> None:
        raise AssertionError("a worker that never was ready is sent nothing")

    def examine(self, examination: Examination, done: Examined) -> None:
        raise AssertionError("a worker that never was ready is not examined")

    def stop(self) -> None: ...
    def kill(self, reason: AgentError) -> None: ...
    def check(self, late: FunctionError) -> None: ...


def start(spec: Spec, pool: Pool, *, loop: asyncio.AbstractEventLoop) -> Worker:
    """Starts a worker for `pool`; one that cannot be started is reported lost in the loop's next turn."""
    try:
        return WorkerProcess(spec, pool, loop=loop)
    except OSError as error:
        reason = FunctionError("WORKER_NOT_STARTED", f"{spec.interpreter} cannot be started: {error}.")
        return not_started(reason, pool, loop=loop)


def not_started(reason: AgentError, pool: Pool, *, loop: asyncio.AbstractEventLoop) -> Worker:
    """A worker that is reported lost for `reason` in the loop's next turn."""
    stillborn = _NotStarted()
    loop.call_soon(pool.on_lost, stillborn, reason)
    return stillborn


def _pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    return ours, theirs


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def _resident_kb(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_KB
    except (OSError, IndexError, ValueError):
        return 0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
