"""What passes between those who ask, the dispatcher and the workers: values, and the ports around them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from agent.errors import AgentError, FunctionError
from agent.values import dataclass


@dataclass(frozen=True, slots=True)
class Origin:
    """What each result of a pool says about where it comes from."""

    function: str
    model: str | None
    version: str | None
    deployment: str | None


class Request:
    """One event for one function.

    Attributes:
        id: the request's id unless its payload names one.
        wants_answer: somebody waits for an answer whatever the result is (MQTT 5 response-topic).
        expires_s: clock after which it is answered EXPIRED instead of run; None: never.
        settle: called exactly once with the outcome.
        context: the caller's own.
        hops: how many functions it went through before this one, for its caller.
        admitted: it was acknowledged by an earlier run and is never refused for want of room.
        client_context: base64 of JSON, or empty, where another function invokes this one; else None.
    """

    # Most requests never set these, and so need not when they are made.
    tries = 0
    sent_s = 0.0
    client_context: str | None = None
    hops = 0

    def __init__(
        self,
        function: str,
        topic: str,
        payload: bytes,
        content_type: str | None,
        id: str,
        settle: Callable[[Request, Answer | Failure], None],
        wants_answer: bool = False,
        expires_s: float | None = None,
        context: Any = None,
        *,
        admitted: bool = False,
    ) -> None:
        self.function = function
        self.topic = topic
        self.payload = payload
        self.content_type = content_type
        self.id = id
        self.settle = settle
        self.wants_answer = wants_answer
        self.expires_s = expires_s
        self.context = context
        self.admitted = admitted


@dataclass(frozen=True, slots=True)
class Kept:
    """A sample that the function itself keeps.

    Attributes:
        given, made: (content type, payload) in place of the request's payload and of the first result; None: these.
    """

    reason: str
    given: tuple[str, bytes] | None = None
    made: tuple[str, bytes] | None = None


class Answer(NamedTuple):
    """What a function made of a request.

    Attributes:
        outputs: (topic or None for the default, content type, payload).
        answer: for a requester where there are no outputs: (content type, payload).
        kept: what it keeps as training data whatever the capture policy says.
        returned: `answer` is the function's result, which is published nowhere, as of V1's Lambda code.
    """

    origin: Origin
    request_id: str
    reply_to: str | None
    outputs: list[tuple[str | None, str, bytes]]
    answer: tuple[str, bytes] | None = None
    kept: Sequence[Kept] = ()
    returned: bool = False


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


@dataclass(frozen=True, slots=True)
class Reply:
    """What comes of a `FunctionCall`.

    Attributes:
        error: it could not be done; None: it was.
        function_error: of an invocation that was done: ``Handled`` where the function said so, ``Unhandled`` where the
            agent did, empty where it succeeded.
        content_type: of the body, where it is known.
    """

    body: bytes = b""
    error: AgentError | None = None
    function_error: str = ""
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """What a function asks of the agent while it runs.

    Attributes:
        origin: who asks.
        operation: ``publish``, ``invoke`` or ``shadow``.
        arguments: of the operation, as its worker sent them: not to be trusted.
        during: the request that it serves meanwhile; None: it asks from a thread of its own.
        reply: to be called once, on the loop's thread.
    """

    origin: Origin
    operation: str
    arguments: Mapping[str, Any]
    body: bytes
    during: Request | None
    reply: Callable[[Reply], None]


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


class Observer(Protocol):
    """Who watches a pool at work. Called on the way of requests: must be quick."""

    def settled(self, error: AgentError | None, latency_s: float) -> None:
        """A request was settled so long after a worker had been sent it."""

    def lost(self, function: str, reason: AgentError) -> None:
        """A worker is gone that nobody told to go."""


class Clock(Protocol):
    def now(self) -> float: ...
    def later(self, delay_s: float, run: Callable[[], None]) -> Any: ...
