"""Worker processes: started by exec, spoken to over one socket pair each, and told apart in how they end.

Runs on the event loop's thread; nothing here blocks but the start of a process (a millisecond).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from agent.errors import AgentError, FunctionError
from agent.inference import launching
from agent.inference.launching import Launch, Spec, open_pidfd
from agent.inference.nearness import ENOUGH, Nearness
from agent.inference.pool import Pool
from agent.inference.requests import Answer, Examination, Failure, FunctionCall, Kept, Reply, Request, Worker
from agent.inference.vitals import MemoryWatch, Pulse
from agent.inference.wire import Wire
from agent.messages import JSON
from functions import aside, frames

log = logging.getLogger(__name__)

DRAIN_S: Final = 30.0
REFUSED_S: Final = 0.15  # the kernel takes one change of weight in a tenth of a second from who is not root
KEPT_LINES: Final = 20
MAX_CALLS: Final = 1024  # of one worker, that wait for their reply
Examined = Callable[[AgentError | None], None]
# What `Answer(..)` does, without a call in Python.
_answer: Callable[[tuple[object, ...]], Answer] = functools.partial(tuple.__new__, Answer)


class WorkerProcess:
    """One worker process and its end of the socket pair."""

    def __init__(
        self, spec: Spec, pool: Pool, *, loop: asyncio.AbstractEventLoop, nearness: Nearness, launch: Launch
    ) -> None:
        self.spec = spec
        self._pool = pool
        self._near = nearness
        self._origin = spec.origin
        self._loop = loop
        self._ready = False
        self._closed = False
        self._calls = 0  # of the function to the agent, that are not answered yet
        self._stopping = False
        self._reason: AgentError | None = None
        self._examined = 0
        self._examinations: dict[int, Examined] = {}
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._timers: list[asyncio.TimerHandle] = []
        started = launch(spec)
        self._process = started.process
        self._light = started.light
        self.pid = self._process.pid
        self._pulse = Pulse(started.pulse, loop, spec.origin.function)
        self._wire = Wire(
            started.wire, loop, on_frame=self._on_frame, on_wrong=self._on_nonsense, on_end=self._on_end_of_stream
        )
        self._watch()
        late = {"late": started.late} if started.late else {}
        self._wire.send([frames.CONFIG, {**spec.config, **late}])

    def _watch(self) -> None:
        assert self._process.stdout is not None
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._loop.add_reader(self._output.fileno(), self._on_output)
        self._pidfd = open_pidfd(self.pid)
        if self._pidfd >= 0:
            self._loop.add_reader(self._pidfd, self._on_exit)
        self._after(self.spec.start_s, self._start_is_late)
        limit, function = self.spec.memory_kb, self.spec.origin.function
        self._memory = MemoryWatch(self.pid, limit, function, self._loop, self.kill) if limit is not None else None

    def _after(self, delay_s: float, run: Any, *args: Any) -> None:
        self._timers = [t for t in self._timers if not t.cancelled() and t.when() > self._loop.time()]
        self._timers.append(self._loop.call_later(delay_s, run, *args))

    # -- to the worker ----------------------------------------------------------------------------------------------

    def send(self, n: int, request: Request) -> None:
        near = self._near
        if near.open:
            if near.alone:
                near.crowd()
        else:
            near.alone += 1
            if near.alone % ENOUGH == 0:
                near.consider(self.pid, self._pool.slots[self].service_s)
        near.open += 1
        header = [frames.REQUEST, n, request.topic, request.content_type, request.id, request.wants_answer]
        if request.client_context is not None:
            header.append(request.client_context)
        self._wire.send(header, request.payload)

    def examine(self, examination: Examination, done: Examined) -> None:
        """Has it run a health check; `done` gets what is wrong, or why it was lost."""
        self._examined += 1
        n = self._examined
        self._examinations[n] = done
        header = [frames.CHECK, n, examination.resource, dict(examination.overrides)]
        self._wire.send(header, examination.check)

    def stop(self) -> None:
        """Lets it finish what it was sent; it is killed when that takes longer than DRAIN_S."""
        if not self._stopping:
            self._stopping = True
            aside.make_room()
            self._wire.send([frames.STOP])
            self._after(
                DRAIN_S, self.kill, FunctionError("DRAIN_TIMEOUT", "The worker did not end when it was told to.")
            )

    def kill(self, reason: AgentError) -> None:
        if self._reason is None:
            self._reason = reason
        self._signal(signal.SIGKILL)

    def check(self, late: FunctionError) -> None:
        """Asks for its pulse, then kills it for `late`, or for WORKER_HUNG where no answer comes."""
        self._pulse.ask(late, self.kill)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    # -- from the worker --------------------------------------------------------------------------------------------

    def _on_frame(self, header: list[Any], body: bytes) -> None:
        kind = header[0]
        if kind == frames.JSON_RESULT:  # nearly always
            self._near.open -= 1
            _, n, request_id = header
            answer = _answer((self._origin, request_id, None, [(None, JSON, body)], None, (), False))
            self._pool.on_result(self, n, answer)
        elif kind == frames.RESULT:
            self._near.open -= 1
            self._pool.on_result(self, header[1], self._answer(header, body))
        elif kind == frames.ERROR:
            self._near.open -= 1
            _, n, request_id, reply_to, code, message = header
            failure = Failure(self.spec.origin, FunctionError(code, message), request_id, reply_to)
            self._pool.on_result(self, n, failure)
        elif kind == frames.CALL:
            self._on_call(header, body)
        elif kind == frames.READY:
            self._on_ready(header[1])
        elif kind == frames.CHECKED:
            _, n, code, message = header
            self._examinations.pop(n)(FunctionError(code, message) if code else None)
        elif kind == frames.FAILED:
            self._reason = self._reason or FunctionError(header[1], header[2])

    def _on_call(self, header: list[Any], body: bytes) -> None:
        _, n, operation, arguments, during = header
        if self.spec.called is None or self._calls >= MAX_CALLS:
            self._reply(n, Reply(error=_too_many(self.spec.origin.function)))
            return
        self._calls += 1
        request = self._pool.sent(self, during) if during else None
        reply = functools.partial(self._replied, n)
        self.spec.called(FunctionCall(self.spec.origin, operation, arguments, body, request, reply))

    def _replied(self, n: int, reply: Reply) -> None:
        self._calls -= 1
        self._reply(n, reply)

    def _reply(self, n: int, reply: Reply) -> None:
        if n and not self._closed:
            code, message = (reply.error.code, reply.error.text) if reply.error else (None, None)
            header = [frames.REPLY, n, code, message, reply.function_error, reply.content_type]
            self._wire.send(header, reply.body)

    def _on_ready(self, facts: dict[str, Any]) -> None:
        self._ready = True
        if self._light:
            self._give_weight_back()
        name, view = self.spec.origin.function, facts.get("tier", "none")
        self._pool.isolation = isolation = str(facts.get("isolation", "process"))
        log.info(
            "function %s: worker %d is ready (isolation: %s; own view of the files: %s)",
            name,
            self.pid,
            isolation,
            view,
        )
        self.spec.seen(isolation, facts.get("warnings", ()))
        self._pool.on_ready(self, int(facts["max_batch"]), settles_late=bool(facts.get("settles_late")))

    def _give_weight_back(self) -> None:
        if not aside.give_weight_back(self.pid):
            self._after(REFUSED_S, self._give_weight_back)

    def _answer(self, header: list[Any], body: bytes) -> Answer:
        _, _, request_id, reply_to, layout, plain, *more = header
        outputs: list[tuple[str | None, str, bytes]] = []
        at = 0
        for topic, content_type, size in layout:
            outputs.append((topic, content_type, body if size == len(body) else body[at : at + size]))
            at += size
        answer = (plain[0], body[at : at + plain[1]]) if plain else None
        kept = _kept(more[0], body, at + (plain[1] if plain else 0)) if more else ()
        returned = plain is not None and len(plain) > 2
        return Answer(self._origin, request_id, reply_to, outputs, answer, kept, returned)

    def _on_nonsense(self, error: Exception) -> None:
        self.kill(FunctionError("WORKER_CRASHED", f"The worker sent what is no frame: {error}."))

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
            message = f"A worker of function {self.spec.origin.function} was not ready within {self.spec.start_s:g} s."
            self.kill(
                FunctionError(
                    "WORKER_START_TIMEOUT", message, "Look at what it does at import, or raise Marram.StartTimeout."
                )
            )

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
        self._on_output()
        self._wire.take_what_is_left()
        self._close()
        reason = self._reason or self._crash(code)
        if not self._stopping or self._reason is not None:
            log.warning("function %s: worker %d is gone: %s", self.spec.origin.function, self.pid, reason)
        for done in self._examinations.values():
            done(reason)
        self._pool.on_lost(self, reason)

    def _crash(self, code: int) -> AgentError:
        how = f"was ended by signal {-code} ({_signal_name(-code)})" if code < 0 else f"ended with exit code {code}"
        said = f" Its last words: {' | '.join(list(self._lines)[-3:])}" if self._lines else ""
        hint = " The kernel does that when memory runs out." if code == -signal.SIGKILL else ""
        return FunctionError("WORKER_CRASHED", f"A worker of function {self.spec.origin.function} {how}.{hint}{said}")

    def _close(self) -> None:
        self._closed = True
        slot = self._pool.slots.get(self)
        self._near.forget(self.pid, len(slot.in_flight) if slot is not None else 0)
        for timer in self._timers:
            timer.cancel()
        if self._memory is not None:
            self._memory.close()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._wire.close()
        self._pulse.close()
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


def start(
    spec: Spec,
    pool: Pool,
    *,
    loop: asyncio.AbstractEventLoop,
    nearness: Nearness,
    launch: Launch = launching.start,
) -> Worker:
    """Starts a worker for `pool`; one that cannot be started is reported lost in the loop's next turn."""
    nearness.make_way()
    try:
        return WorkerProcess(spec, pool, loop=loop, nearness=nearness, launch=launch)
    except OSError as error:
        reason = FunctionError("WORKER_NOT_STARTED", f"{spec.interpreter} cannot be started: {error}.")
        return not_started(reason, pool, loop=loop)


def not_started(reason: AgentError, pool: Pool, *, loop: asyncio.AbstractEventLoop) -> Worker:
    """A worker that is reported lost for `reason` in the loop's next turn."""
    stillborn = _NotStarted()
    loop.call_soon(pool.on_lost, stillborn, reason)
    return stillborn


def _kept(samples: list[Any], body: bytes, at: int) -> list[Kept]:
    """The samples of a RESULT, whose own parts stand in `body` from `at` on."""
    kept = []
    for reason, *parts in samples:
        own: list[tuple[str, bytes] | None] = []
        for part in parts:
            if part is None:
                own.append(None)
            else:
                own.append((part[0], body[at : at + part[1]]))
                at += part[1]
        kept.append(Kept(reason, *own))
    return kept


def _too_many(function: str) -> FunctionError:
    return FunctionError("TOO_MANY_CALLS", f"Function {function} has {MAX_CALLS} calls to the agent open.", "Ask less.")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
