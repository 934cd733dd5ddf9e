"""The workers of one generation of one function: which request each gets, and what becomes of those it leaves. Pure.

Time comes from a clock that is passed in and workers are a port, so all of it runs in a simulation as well.

What a lost worker's requests get: the one that it was working on (or the batch) is tried once more on another worker,
then answered with the loss; those that only waited behind it go to another worker as if nothing had happened. A
request that ran into its time limit is answered at once and never run again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agent.errors import AgentError, FunctionError
from agent.inference.deadlines import Deadlines
from agent.inference.demand import Demand
from agent.inference.queueing import WorkQueue
from agent.inference.requests import Answer, Clock, Failure, Observer, Origin, Request, Worker
from agent.inference.slots import GRACE_S, Slot, free
from agent.values import dataclass

MAX_TRIES: Final = 2
FAILED_STARTS: Final = 3  # after so many in a row the function counts as failed and its requests are answered


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What a function may take: `timeout_s` for one request in a handler, `processes` workers.

    Attributes:
        keep_alive_s: on demand: how long a worker stays that has nothing to do; None: all workers are always there.
    """

    processes: int = 1
    keep_alive_s: float | None = None
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

    Attributes:
        held: no worker is ended for having nothing to do.
        isolation: the tier that its workers are in, once one is ready.
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
        self.held = False
        self.isolation: str | None = None
        self._start = start
        self._clock = clock
        self._now = clock.now
        self._jitter = jitter
        self._changed = changed
        self.slots: dict[Worker, Slot] = {}
        self.queue = WorkQueue()
        self._deadlines = Deadlines(self.slots.values(), limits.timeout_s, clock, self._late)
        self._numbers = 0
        self._failed_starts = 0
        self._losses = 0
        self._proven = False
        self._replacing = False
        self._demand = Demand(self, clock, limits.keep_alive_s) if limits.keep_alive_s is not None else None
        self._heir: Callable[[Request], None] | None = None
        self._drained: Callable[[], None] | None = None

    # -- state ------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``ready`` (some worker is, or will be at need), ``failed`` (none, after several starts) or ``starting``."""
        if self.serves:
            return "ready"
        if self._failed_starts >= FAILED_STARTS:
            return "failed"
        return "ready" if self._demand is not None and (self._proven or not self.slots) else "starting"

    @property
    def on_demand(self) -> bool:
        """Whether it has workers only while there is work."""
        return self._demand is not None

    @property
    def idle_workers_stay(self) -> bool:
        """Whether no worker is ended for having nothing to do: while the pool is held, or watched."""
        return self.held or self.observer is not None

    @property
    def serves(self) -> bool:
        """Whether some worker is ready."""
        for slot in self.slots.values():  # noqa: SIM110 -- asked for each request, for which `any` makes a generator
            if slot.ready and not slot.condemned:
                return True
        return False

    @property
    def all_ready(self) -> bool:
        """Whether all workers that it should have now take requests; on demand, one is enough."""
        wanted = self.limits.processes if self._demand is None else 1
        return sum(s.serves for s in self.slots.values()) >= wanted

    @property
    def waiting(self) -> int:
        """Requests in flight and in the queue."""
        return len(self.queue) + sum(len(s.in_flight) for s in self.slots.values())

    @property
    def crowded(self) -> bool:
        """Whether more requests wait than is good: who can wait elsewhere should."""
        return self.queue.is_crowded

    def open(self) -> None:
        """Starts the workers; on demand, the first."""
        for _ in range(self.limits.processes if self._demand is None else 1):
            self.add()

    def wake(self) -> None:
        """Sees to it that there is a worker, or will be."""
        if not self._replacing and all(slot.stopping for slot in self.slots.values()):
            self.add()

    def ready_workers(self) -> list[Worker]:
        """The workers that take requests now."""
        return [slot.worker for slot in self.slots.values() if slot.serves]

    def pids(self) -> list[int]:
        """Process ids of the workers, for the status."""
        return [worker.pid for worker in self.slots]

    def sent(self, worker: Worker, n: int) -> Request | None:
        """The request that the worker was sent under that number, until it is settled."""
        slot = self.slots.get(worker)
        return slot.in_flight.get(n) if slot else None

    def has_room(self, size: int) -> bool:
        """Whether a request of so many bytes would be run or queued now."""
        return self.state != "failed" and (free(self.slots.values()) is not None or self.queue.has_room(size))

    def add(self) -> None:
        """Starts one more worker."""
        worker = self._start(self)
        self.slots[worker] = Slot(worker)

    # -- requests ---------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Sends the request to a worker, or queues it, or settles it at once where neither can be."""
        slot = free(self.slots.values())
        if slot is not None and not self.queue.requests:
            self._send(slot, request)
        elif self._failed_starts >= FAILED_STARTS and self.state == "failed":
            self._fail(request, self._why_failed())
        elif not self.queue.put(request):
            self._fail(request, self._overloaded())
        elif slot is not None:
            self._pump()
        elif self._demand is not None:
            self._demand.waits(request)

    def _send(self, slot: Slot, request: Request) -> None:
        now = self._now()
        if request.expires_s is not None and now >= request.expires_s:
            self._fail(
                request, FunctionError("EXPIRED", "The request's expiry interval ran out before it could be run.")
            )
            return
        self._numbers = n = self._numbers + 1
        request.sent_s = now
        if not slot.in_flight:
            slot.busy_since_s = now
        slot.in_flight[n] = request
        slot.worker.send(n, request)
        if not self._deadlines.watching:
            self._deadlines.watch()

    def _pump(self) -> None:
        while self.queue.requests:
            slot = free(self.slots.values())
            if slot is None:
                return
            self._send(slot, self.queue.get())

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
            f"Function {self.origin.function} already has {len(self.queue)} requests waiting.",
            "Send fewer, or give it more Processes.",
        )

    # -- what workers report ----------------------------------------------------------------------------------------

    def on_ready(self, worker: Worker, max_batch: int, *, settles_late: bool = False) -> None:
        slot = self.slots.get(worker)
        if slot is None:
            return
        slot.ready = self._proven = True
        slot.max_batch = max_batch
        slot.grace_s = GRACE_S if settles_late else 0.0
        slot.busy_since_s = self._clock.now()
        self._failed_starts = 0
        self._pump()
        if self._demand is not None:
            self._demand.watch()
        self._changed()

    def on_result(self, worker: Worker, n: int, outcome: Answer | Failure) -> None:
        slot = self.slots.get(worker)
        request = slot.in_flight.pop(n, None) if slot else None
        if slot is None or request is None:
            return
        now = self._now()
        slot.service_s += 0.1 * (now - slot.busy_since_s - slot.service_s)
        slot.busy_since_s = now
        self._losses = 0
        if self.observer is not None:
            self.observer.settled(outcome.error if type(outcome) is Failure else None, now - request.sent_s)
        request.settle(request, outcome)
        if self.queue.requests:
            self._pump()
        if self._drained is not None:
            self._end_if_drained()

    def on_lost(self, worker: Worker, reason: AgentError) -> None:
        """The process is gone. Its requests go elsewhere or are answered; a replacement starts in the background."""
        slot = self.slots.pop(worker, None)
        if slot is None:
            return
        if not slot.stopping:
            self.last_loss = reason
            self._failed_starts += not slot.ready
            if self.observer is not None:
                self.observer.lost(self.origin.function, reason)
        self._resend(slot, reason)
        if self._heir is None and (self._demand is None or not slot.stopping):
            self._replace()
        elif self._heir is None and self.queue.requests:
            self.wake()
        if self.state == "failed":
            for request in self.queue.emptied():
                self._fail(request, self._why_failed())
        self._pump()
        self._changed()
        self._end_if_drained()

    def _resend(self, slot: Slot, reason: AgentError) -> None:
        again: list[Request] = []
        for place, request in enumerate(slot.in_flight.values()):
            if not slot.condemned and place < slot.max_batch:
                request.tries += 1
            if request in slot.late or request.tries >= MAX_TRIES:
                self._fail(request, reason)
            else:
                again.append(request)
        if self._heir is None:
            self.queue.put_back(again)
        else:
            for request in again:
                self._heir(request)

    def _replace(self) -> None:
        self._losses += 1
        first, longest = self.limits.backoff_s
        delay = 0.0 if self._losses == 1 else min(longest, first * 2 ** (self._losses - 2)) * (0.5 + self._jitter() / 2)
        self._replacing = True
        self._clock.later(delay, self._respawn)

    def _respawn(self) -> None:
        self._replacing = False
        if self._heir is None and (self._demand is None or self._demand.needs_another(self._failed_starts)):
            self.add()

    def _late(self) -> FunctionError:
        return FunctionError(
            "FUNCTION_TIMEOUT",
            f"Function {self.origin.function} took longer than its Timeout of {self.limits.timeout_s:g} s.",
            "Raise Timeout in its FunctionConfiguration, or make the handler quicker.",
        )

    # -- ending -----------------------------------------------------------------------------------------------------

    def hand_over(self, heir: Callable[[Request], None]) -> None:
        """Gives away what no worker has been sent; the workers go on with what they have, and stay."""
        for request in self.queue.emptied():
            heir(request)

    def drain(self, heir: Callable[[Request], None], drained: Callable[[], None]) -> None:
        """Lets the workers finish what they have, then ends them.

        Args:
            heir: gets what no worker has been sent, and what a worker that dies meanwhile leaves behind.
            drained: runs when the last worker is gone.
        """
        self._heir, self._drained = heir, drained
        self.hand_over(heir)
        for slot in list(self.slots.values()):
            slot.stopping = True
            slot.worker.stop()
        self._end_if_drained()

    def kill(self, reason: FunctionError) -> None:
        """Ends all workers now; what they leave goes to the heir that `drain` named, or is answered with `reason`."""
        if self._heir is None:
            self._heir = lambda request: self._fail(request, reason)
        self.hand_over(self._heir)
        for slot in list(self.slots.values()):
            slot.stopping = True
            slot.worker.kill(reason)

    def end_workers(self, reason: FunctionError) -> None:
        """Ends all workers now; others take their places."""
        for slot in list(self.slots.values()):
            slot.worker.kill(reason)

    def _end_if_drained(self) -> None:
        if self._drained is not None and not self.slots:
            drained, self._drained = self._drained, None
            drained()
