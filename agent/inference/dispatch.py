"""Requests in flight: which worker gets which request, what waits, what is late, what is tried again. Pure.

Time comes from a clock that is passed in and workers are a port, so all of it runs in a simulation as well. One
`Pool` is one generation of one function; `Dispatcher` knows which pool of a function is the one in use.

What a lost worker's requests get: the one that it was working on (or the batch) is tried once more on another worker,
then answered with the loss; those that only waited behind it go to another worker as if nothing had happened. A
request that ran into its time limit is answered at once and never run again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from agent.errors import AgentError, FunctionError

MAX_TRIES = 2
MAX_QUEUED = 1024  # Greengrass V1's work queue
MAX_QUEUED_BYTES = 64 * 1024 * 1024
SENT_AHEAD_S = 0.005  # work handed to a worker before it asks: enough to keep it busy, little to lose
MAX_SENT_AHEAD = 128
FAILED_STARTS = 3  # after so many in a row the function counts as failed and its requests are answered


@dataclass(frozen=True, slots=True)
class Origin:
    """What each result of a pool says about where it comes from."""

    function: str
    model: str | None
    version: str | None
    deployment: str | None


@dataclass(slots=True, eq=False)
class Request:
    """One event for one function.

    Attributes:
        id: the request's id unless its payload names one.
        wants_answer: somebody waits for an answer whatever the result is (MQTT 5 response-topic).
        expires_s: clock after which it is answered EXPIRED instead of run; None: never.
        settle: called exactly once with the outcome.
        context: the caller's own.
    """

    function: str
    topic: str
    payload: bytes
    content_type: str | None
    id: str
    settle: Callable[[Request, Answer | Failure], None]
    wants_answer: bool = False
    expires_s: float | None = None
    context: Any = None
    tries: int = 0
    sent_s: float = 0.0


@dataclass(slots=True, eq=False)
class Answer:
    """What a function made of a request.

    Attributes:
        outputs: (topic or None for the default, content type, payload).
        answer: for a requester where there are no outputs: (content type, payload).
    """

    origin: Origin
    request_id: str
    reply_to: str | None
    outputs: list[tuple[str | None, str, bytes]]
    answer: tuple[str, bytes] | None = None


@dataclass(slots=True, eq=False)
class Failure:
    """Why there is no result. `request_id` and `reply_to` are None where no worker read the payload."""

    origin: Origin
    error: AgentError
    request_id: str | None = None
    reply_to: str | None = None


@dataclass(frozen=True, slots=True)
class Examination:
    """A health check for a worker to run on its loaded model.

    Attributes:
        resource: the model's resource Id.
        overrides: bounds that hold in place of the check's own.
        check: as `functions.health` reads it.
    """

    resource: str
    overrides: Mapping[str, Any]
    check: bytes


class Worker(Protocol):
    """A worker process as the pool sees it. None of its methods blocks."""

    @property
    def pid(self) -> int: ...

    def send(self, n: int, request: Request) -> None: ...
    def examine(self, examination: Examination, done: Callable[[AgentError | None], None]) -> None:
        """Run a health check between requests; `done` gets what is wrong, once, also where the worker is lost."""

    def stop(self) -> None:
        """Finish what was sent, then end."""

    def kill(self, reason: FunctionError) -> None:
        """End it now; `Pool.on_lost` gets `reason`."""

    def check(self, late: FunctionError) -> None:
        """Ask whether it still lives, then kill it: for `late` where it does, for WORKER_HUNG where it does not."""


@dataclass(slots=True, eq=False)
class _Slot:
    """A worker and what it has been sent, oldest first."""

    worker: Worker
    ready: bool = False
    stopping: bool = False
    condemned: bool = False
    late: frozenset[Request] = frozenset()
    in_flight: dict[int, Request] = field(default_factory=dict)
    service_s: float = SENT_AHEAD_S
    busy_since_s: float = 0.0
    max_batch: int = 1


class Observer(Protocol):
    """Who watches a pool at work. Called on the way of requests: must be quick."""

    def settled(self, error: AgentError | None, latency_s: float) -> None:
        """A request was settled so long after a worker had been sent it."""

    def lost(self, function: str, reason: AgentError) -> None:
        """A worker is gone that nobody told to go."""


class Clock(Protocol):
    def now(self) -> float: ...
    def later(self, delay_s: float, run: Callable[[], None]) -> Any: ...


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What a function may take: `timeout_s` for one request in a handler, `processes` workers."""

    processes: int = 1
    timeout_s: float = 3.0
    max_batch: int = 1
    backoff_s: tuple[float, float] = (0.1, 30.0)  # first and longest wait before a replacement after repeated losses


class Pool:
    """The workers of one generation of one function and the requests that wait for them.

    Args:
        origin: says what the results come from.
        limits: processes, time-out, batch.
        start: starts a worker process that reports to `on_ready`, `on_result`, `on_lost`; does not block.
        clock: time and timers.
        jitter: a number in [0, 1) for the back-off.
        changed: called whenever `state` may have changed.
    """

    def __init__(
        self,
        origin: Origin,
        limits: PoolLimits,
        start: Callable[[Pool], Worker],
        clock: Clock,
        jitter: Callable[[], float],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.origin = origin
        self.limits = limits
        self.last_loss: AgentError | None = None
        self.observer: Observer | None = None
        self._start = start
        self._clock = clock
        self._jitter = jitter
        self._changed = changed
        self._slots: list[_Slot] = []
        self._queue: deque[Request] = deque()
        self._queued_bytes = 0
        self._numbers = 0
        self._failed_starts = 0
        self._losses = 0
        self._timer_set = False
        self._heir: Callable[[Request], None] | None = None
        self._drained: Callable[[], None] | None = None

    # -- state ------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``ready`` (some worker is), ``failed`` (none, after several starts) or ``starting``."""
        if any(s.ready and not s.condemned for s in self._slots):
            return "ready"
        return "failed" if self._failed_starts >= FAILED_STARTS else "starting"

    @property
    def all_ready(self) -> bool:
        return len(self._slots) >= self.limits.processes and all(s.ready and not s.condemned for s in self._slots)

    @property
    def waiting(self) -> int:
        """Requests in flight and in the queue."""
        return len(self._queue) + sum(len(s.in_flight) for s in self._slots)

    def open(self) -> None:
        """Starts the workers."""
        for _ in range(self.limits.processes):
            self._add()

    def ready_workers(self) -> list[Worker]:
        """The workers that take requests now."""
        return [slot.worker for slot in self._slots if slot.ready and not slot.condemned]

    def pids(self) -> list[int]:
        """Process ids of the workers, for the status."""
        return [slot.worker.pid for slot in self._slots]

    def _add(self) -> None:
        self._slots.append(_Slot(self._start(self)))

    # -- requests ---------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Sends the request to a worker, or queues it, or settles it at once where neither can be."""
        slot = self._free_slot()
        if slot is not None and not self._queue:
            self._send(slot, request)
        elif self.state == "failed":
            self._fail(request, self._why_failed())
        elif len(self._queue) >= MAX_QUEUED or self._queued_bytes + len(request.payload) > MAX_QUEUED_BYTES:
            self._fail(request, self._overloaded())
        else:
            self._queue.append(request)
            self._queued_bytes += len(request.payload)
            if slot is not None:
                self._pump()

    def _free_slot(self) -> _Slot | None:
        best: _Slot | None = None
        for slot in self._slots:
            if slot.ready and not slot.condemned and len(slot.in_flight) < self._window(slot):
                if not slot.in_flight:
                    return slot
                if best is None or len(slot.in_flight) < len(best.in_flight):
                    best = slot
        return best

    def _window(self, slot: _Slot) -> int:
        ahead = min(int(SENT_AHEAD_S / max(slot.service_s, 1e-6)), MAX_SENT_AHEAD)
        return max(ahead, 2 * slot.max_batch if slot.max_batch > 1 else 1)

    def _send(self, slot: _Slot, request: Request) -> None:
        now = self._clock.now()
        if request.expires_s is not None and now >= request.expires_s:
            self._fail(
                request, FunctionError("EXPIRED", "The request's expiry interval ran out before it could be run.")
            )
            return
        self._numbers += 1
        request.sent_s = now
        if not slot.in_flight:
            slot.busy_since_s = now
        slot.in_flight[self._numbers] = request
        slot.worker.send(self._numbers, request)
        self._watch()

    def _pump(self) -> None:
        while self._queue:
            slot = self._free_slot()
            if slot is None:
                return
            self._send(slot, self._dequeue())

    def _dequeue(self) -> Request:
        request = self._queue.popleft()
        self._queued_bytes -= len(request.payload)
        return request

    def _requeue(self, requests: list[Request]) -> None:
        self._queue.extendleft(reversed(requests))
        self._queued_bytes += sum(len(r.payload) for r in requests)

    def _fail(
        self, request: Request, error: AgentError, request_id: str | None = None, reply_to: str | None = None
    ) -> None:
        if self.observer is not None:
            self.observer.settled(error, 0.0)
        request.settle(request, Failure(self.origin, error, request_id, reply_to))

    def _why_failed(self) -> AgentError:
        why = self.last_loss.text if self.last_loss else ""
        return FunctionError("FUNCTION_FAILED", f"Function {self.origin.function} does not start: {why}")

    def _overloaded(self) -> AgentError:
        return FunctionError(
            "OVERLOADED",
            f"Function {self.origin.function} already has {len(self._queue)} requests waiting.",
            "Send fewer, or give it more Processes.",
        )

    # -- what workers report ----------------------------------------------------------------------------------------

    def on_ready(self, worker: Worker, max_batch: int) -> None:
        slot = self._slot_of(worker)
        if slot is None:
            return
        slot.ready = True
        slot.max_batch = max_batch
        self._failed_starts = 0
        self._pump()
        self._changed()

    def on_result(self, worker: Worker, n: int, outcome: Answer | Failure) -> None:
        slot = self._slot_of(worker)
        request = slot.in_flight.pop(n, None) if slot else None
        if slot is None or request is None:
            return
        now = self._clock.now()
        slot.service_s += 0.1 * (now - slot.busy_since_s - slot.service_s)
        slot.busy_since_s = now
        self._losses = 0
        if self.observer is not None:
            self.observer.settled(outcome.error if type(outcome) is Failure else None, now - request.sent_s)
        request.settle(request, outcome)
        if self._queue:
            self._pump()
        self._end_if_drained()

    def on_lost(self, worker: Worker, reason: AgentError) -> None:
        """The process is gone. Its requests go elsewhere or are answered; a replacement starts in the background."""
        slot = self._slot_of(worker)
        if slot is None:
            return
        self._slots.remove(slot)
        self.last_loss = reason
        if not slot.ready and not slot.stopping:
            self._failed_starts += 1
        if self.observer is not None and not slot.stopping:
            self.observer.lost(self.origin.function, reason)
        self._resend(slot, reason)
        if self._heir is None:
            self._replace()
        if self.state == "failed":
            while self._queue:
                self._fail(self._dequeue(), self._why_failed())
        self._pump()
        self._changed()
        self._end_if_drained()

    def _resend(self, slot: _Slot, reason: AgentError) -> None:
        again: list[Request] = []
        for place, request in enumerate(slot.in_flight.values()):
            if not slot.condemned and place < slot.max_batch:
                request.tries += 1
            if request in slot.late or request.tries >= MAX_TRIES:
                self._fail(request, reason)
            else:
                again.append(request)
        if self._heir is None:
            self._requeue(again)
        else:
            for request in again:
                self._heir(request)

    def _replace(self) -> None:
        self._losses += 1
        first, longest = self.limits.backoff_s
        delay = 0.0 if self._losses == 1 else min(longest, first * 2 ** (self._losses - 2)) * (0.5 + self._jitter() / 2)
        self._clock.later(delay, self._respawn)

    def _respawn(self) -> None:
        if self._heir is None:
            self._add()

    # -- deadlines --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        if not self._timer_set:
            self._timer_set = True
            self._clock.later(self.limits.timeout_s, self._find_late)

    def _find_late(self) -> None:
        """One timer a pool, set only while something is in flight: none is made or cancelled for a request."""
        self._timer_set = False
        now, nearest = self._clock.now(), None
        for slot in self._slots:
            if not slot.in_flight or slot.condemned:
                continue
            left = slot.busy_since_s + self.limits.timeout_s - now
            if left <= 0:
                slot.condemned = True
                slot.late = frozenset(list(slot.in_flight.values())[: slot.max_batch])
                slot.worker.check(self._late())
            else:
                nearest = left if nearest is None else min(nearest, left)
        if nearest is not None:
            self._timer_set = True
            self._clock.later(nearest, self._find_late)

    def _late(self) -> FunctionError:
        return FunctionError(
            "FUNCTION_TIMEOUT",
            f"Function {self.origin.function} took longer than its Timeout of {self.limits.timeout_s:g} s.",
            "Raise Timeout in its FunctionConfiguration, or make the handler quicker.",
        )

    # -- ending -----------------------------------------------------------------------------------------------------

    def hand_over(self, heir: Callable[[Request], None]) -> None:
        """Gives away what no worker has been sent; the workers go on with what they have, and stay."""
        while self._queue:
            heir(self._dequeue())

    def drain(self, heir: Callable[[Request], None], drained: Callable[[], None]) -> None:
        """Lets the workers finish what they have, then ends them.

        Args:
            heir: gets what no worker has been sent, and what a worker that dies meanwhile leaves behind.
            drained: runs when the last worker is gone.
        """
        self._heir, self._drained = heir, drained
        self.hand_over(heir)
        for slot in self._slots:
            slot.stopping = True
            slot.worker.stop()
        self._end_if_drained()

    def kill(self, reason: FunctionError) -> None:
        """Ends all workers now; what they leave goes to the heir that `drain` named, or is answered with `reason`."""
        if self._heir is None:
            self._heir = lambda request: self._fail(request, reason)
        while self._queue:
            self._heir(self._dequeue())
        for slot in list(self._slots):
            slot.stopping = True
            slot.worker.kill(reason)

    def _end_if_drained(self) -> None:
        if self._drained is not None and not self._slots:
            drained, self._drained = self._drained, None
            drained()

    def _slot_of(self, worker: Worker) -> _Slot | None:
        for slot in self._slots:
            if slot.worker is worker:
                return slot
        return None


class Dispatcher:
    """The pools in use, by function Id."""

    def __init__(self) -> None:
        self.pools: dict[str, Pool] = {}

    def submit(self, request: Request) -> None:
        """Gives the request to its function; a function that is not deployed is answered so."""
        pool = self.pools.get(request.function)
        if pool is not None:
            pool.submit(request)
        else:
            request.settle(
                request, Failure(Origin(request.function, None, None, None), _not_deployed(request.function))
            )

    def ready(self, function: str) -> bool:
        """Whether a request for `function` would be run now (one that is not deployed is answered now)."""
        pool = self.pools.get(function)
        return pool is None or pool.state != "starting"

    def promote(self, pools: Iterable[Pool], drained: Callable[[Pool], None] | None = None) -> None:
        """Puts `pools` into use in place of all others; what waited in those goes to the new ones.

        Args:
            drained: called for each of the old pools at its end; None: they stay as they are, without requests.
        """
        old = self.pools
        self.pools = {pool.origin.function: pool for pool in pools}
        for pool in old.values():
            if drained is None:
                pool.hand_over(self.submit)
            else:
                pool.drain(self.submit, partial(drained, pool))

    def states(self) -> list[tuple[str, str]]:
        """(function, state) of each function in use, sorted."""
        return sorted((name, pool.state) for name, pool in self.pools.items())


def _not_deployed(function: str) -> FunctionError:
    return FunctionError(
        "FUNCTION_NOT_DEPLOYED",
        f"No function with the Id {function!r} is deployed on this core.",
        "Deploy a group that has it, or take the subscription away.",
    )
