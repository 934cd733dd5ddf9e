"""What becomes of a new group's first requests, and whether that is good enough. Pure: the clock is the caller's.

Only what is the function's or the model's fault counts as an error: a sender that sends garbage proves nothing. Fewer
than `FEW` answers prove nothing either; the golden requests decide then.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Final

from agent.deployment.definition import Probation
from agent.errors import AgentError, FunctionError

FEW: Final = 5
SURE: Final = 20  # from so many on it is not waited for the end
CRASHES: Final = 3  # of one function's workers
CRASHES_WITHIN_S: Final = 60.0
KEPT: Final = 1000  # latencies, the latest
AT_FAULT: Final = frozenset({
    "BAD_INPUT", "BAD_RESULT_TOPIC", "BATCH_RESULT_MISMATCH", "DISK_SIZE_EXCEEDED", "FUNCTION_FAILED",
    "FUNCTION_RAISED", "FUNCTION_TIMEOUT", "MODEL_FAILED", "OUT_OF_MEMORY", "RESULT_NOT_ENCODABLE", "WORKER_CRASHED",
    "WORKER_HUNG",
})  # fmt: skip
# A request that takes too long costs its worker, too; it counts as a failed request, not as a crash.
NO_CRASH: Final = frozenset({"FUNCTION_TIMEOUT"})


class Watch:
    """The outcomes of one probation.

    Args:
        bounds: how long, and what is allowed.
        began_s: the clock now.

    Attributes:
        ends_s: when it is over at the latest.
    """

    def __init__(self, bounds: Probation, began_s: float) -> None:
        self.ends_s = began_s + bounds.seconds
        self._bounds = bounds
        self._answered = 0
        self._failed = 0
        self._last_error: AgentError | None = None
        self._latencies_s: deque[float] = deque(maxlen=KEPT)
        self._crashes: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=CRASHES))
        self._looping: AgentError | None = None

    def settled(self, error: AgentError | None, latency_s: float) -> None:
        """A request was answered, or with an error."""
        if error is None:
            self._answered += 1
            self._latencies_s.append(latency_s)
        elif error.code in AT_FAULT:
            self._failed += 1
            self._last_error = error

    def lost(self, function: str, reason: AgentError, now_s: float) -> None:
        """A worker of `function` is gone, and nobody told it to go."""
        if reason.code in NO_CRASH:
            return
        crashes = self._crashes[function]
        crashes.append(now_s)
        if len(crashes) == CRASHES and now_s - crashes[0] <= CRASHES_WITHIN_S:
            text = (
                f"{CRASHES} workers of function {function} were lost in the probation, the last one so: {reason.text}"
            )
            self._looping = FunctionError("PROBATION_CRASH_LOOP", text)

    @property
    def too_few(self) -> bool:
        """Whether so little was answered that it proves nothing."""
        return self._count < min(FEW, self._bounds.requests or FEW)

    @property
    def _count(self) -> int:
        return self._answered + self._failed

    def decided(self, now_s: float) -> bool:
        """Whether it need not be watched any longer."""
        counted = self._bounds.requests is not None and self._count >= self._bounds.requests
        return counted or now_s >= self.ends_s or self._looping is not None or (self._count >= SURE and self._is_bad())

    def check(self) -> None:
        """Says what is wrong with what was seen so far.

        Raises:
            AgentError: PROBATION_CRASH_LOOP, PROBATION_ERROR_RATE, PROBATION_SLOW.
        """
        if self._looping is not None:
            raise self._looping
        if self.too_few:
            return
        if self._has_errors():
            assert self._last_error is not None
            text = f"{self._failed} of {self._count} requests failed in the probation, the last one so:"
            allowed = f"at most {self._bounds.max_error_rate:.0%} may (MaxErrorRate)"
            raise FunctionError("PROBATION_ERROR_RATE", f"{text} {self._last_error}; {allowed}")
        if self._is_slow():
            median = _median(self._latencies_s) * 1000
            allowed = f"at most {self._bounds.max_latency_ms:g} ms are allowed (MaxLatencyMs)"
            text = f"the median of the requests took {median:.3g} ms in the probation; {allowed}"
            raise FunctionError("PROBATION_SLOW", text)

    def _is_bad(self) -> bool:
        return self._has_errors() or (self._count % SURE == 0 and self._is_slow())

    def _has_errors(self) -> bool:
        return self._failed > self._bounds.max_error_rate * self._count

    def _is_slow(self) -> bool:
        bound = self._bounds.max_latency_ms
        return bound is not None and bool(self._latencies_s) and _median(self._latencies_s) * 1000 > bound


def _median(values: Iterable[float]) -> float:
    """As in the module statistics, which loads decimal and fractions."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
