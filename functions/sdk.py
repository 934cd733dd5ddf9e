"""What the author of a function imports: the context of a request, and results that name their topic.

A function's folder has an ``__init__.py`` with ``handler(event, context)``::

    from functions.sdk import Context, RequestError


    def handler(event: dict[str, list[float]], context: Context) -> dict[str, int]:
        if len(event["window"]) < 100:
            raise RequestError("WINDOW_TOO_SHORT", "100 samples are needed.")
        scores = context.model("activity-model").predict({"data": [event["window"]]})["scores"][0]
        return {"activity": int(scores.argmax())}

``async def handler`` has several requests under way at once, on one event loop. ``batch_handler(events, contexts)``,
beside it or in its place, gets several requests at once and returns a list with a result for each (an exception as an
element fails that one alone). Arrays in an event share the message's memory and cannot be written to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from functions.errors import CodedError, RequestError
from functions.secrets import CURRENT, Secret, Secrets, UnknownSecretError

if TYPE_CHECKING:
    from logging import LoggerAdapter
    from pathlib import Path

    from functions.asking import Asker, InvokeError, ShadowError, ShadowOf
    from functions.runtimes.base import Model, TensorSpec

__all__ = [
    "AsyncHandler",
    "BatchHandler",
    "Context",
    "Handler",
    "InvokeError",
    "Model",
    "RequestError",
    "Result",
    "Secret",
    "ShadowError",
    "TensorSpec",
    "UnknownModelError",
    "UnknownSecretError",
]

MAX_REASON: Final = 64  # characters of a sample's reason
AS_IT_IS: Final[Any] = object()  # stands for the request's own payload, or the result


def __getattr__(name: str) -> Any:
    """`Model` and `TensorSpec`, which bring numpy, and what few need: only for who names them at run time."""
    if name in ("Model", "TensorSpec"):
        from functions.runtimes import base

        return getattr(base, name)
    if name in ("InvokeError", "ShadowError"):
        from functions import asking

        return getattr(asking, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class UnknownModelError(LookupError):
    """The function asked for a model that its deployment does not give it."""


class Result:
    """A result that says where it goes, or what it is.

    Args:
        topic: a topic to publish it on, instead of the request's topic and the function's id.
        payload: whatever can be encoded; bytes go as they are.
        content_type: a MIME type; else the request's own encoding is taken.
    """

    __slots__ = ("content_type", "payload", "topic")

    def __init__(self, topic: str | None = None, payload: Any = None, content_type: str | None = None) -> None:
        for name, value in (("topic", topic), ("content_type", content_type)):
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name} must be a text, not {type(value).__name__}")
        self.topic = topic
        self.payload = payload
        self.content_type = content_type

    def __repr__(self) -> str:
        return f"Result(topic={self.topic!r}, payload={self.payload!r}, content_type={self.content_type!r})"


class Kept(NamedTuple):
    """What `Context.capture` was given; `AS_IT_IS` for the request's payload and the result."""

    reason: str
    input: Any
    output: Any


class Given:
    """What a function was given, the same for all of its requests: see `Context`.

    Attributes:
        first: the first of the models.
    """

    __slots__ = ("asker", "deployment", "first", "function", "models", "secrets", "state_dir")

    def __init__(
        self,
        function: str,
        models: Mapping[str, Model] | None = None,
        deployment: str = "",
        state_dir: str = "",
        secrets: Secrets | None = None,
        asker: Callable[[Context], Asker] | None = None,
    ) -> None:
        self.function = function
        self.models: Mapping[str, Model] = models if models is not None else {}
        self.first = next(iter(self.models.values()), None)
        self.deployment = deployment
        self.state_dir = state_dir
        self.secrets = secrets
        self.asker = asker


class Context:
    """What a handler may know and use beside its event. One for each request.

    Attributes:
        request: the request's id, as its answer carries it.
        content_type: how its payload is encoded, ``application/json``, ``application/msgpack`` or
            ``application/octet-stream``; its answer will be too.
        published: what `publish` was given so far.
        kept: what `capture` was given so far.
        unusual: whether there is more to its answer than what the handler returns.
    """

    # A worker makes one for each request: what all requests have in common is one object, what the agent said of this
    # one stays in its frame's header, and what few of them have is the class's until it is set.
    __slots__ = ("__dict__", "_given", "_header", "content_type", "request", "unusual")

    published: list[Result] | None = None
    kept: list[Kept] | None = None

    def __init__(
        self,
        function: str,
        request: str,
        topic: str,
        models: Mapping[str, Model] | None = None,
        deployment: str = "",
        content_type: str = "application/json",
        state_dir: str = "",
        secrets: Secrets | None = None,
        asker: Callable[[Context], Asker] | None = None,
        n: int = 0,
    ) -> None:
        self._given = Given(function, models, deployment, state_dir, secrets, asker)
        self._header: list[Any] = [None, n, topic, content_type, request, False]
        self.request = request
        self.content_type = content_type
        self.unusual = False

    @property
    def n(self) -> int:
        """The request's number on the worker's connection."""
        return int(self._header[1])

    @property
    def topic(self) -> str:
        """The topic it came on."""
        return str(self._header[2])

    @property
    def function(self) -> str:
        """The function's Id."""
        return self._given.function

    @property
    def models(self) -> Mapping[str, Model]:
        """All of the function's models by their resource Ids."""
        return self._given.models

    @property
    def deployment(self) -> str:
        """The deployment's id; empty outside one."""
        return self._given.deployment

    @property
    def secrets(self) -> Secrets | None:
        """All of the function's secrets; see `secret`."""
        return self._given.secrets

    def model(self, resource: str | None = None) -> Model:
        """The model of that resource Id; without one, the function's first.

        Example::

            outputs = context.model("activity-model").predict({"data": [[0.1, 0.2, 0.3]]})

        Raises:
            UnknownModelError: the function has no such model; the message names those that it has.
        """
        given = self._given
        model = given.first if resource is None else given.models.get(resource)
        if model is not None:
            return model
        known = ", ".join(self.models) or "none"
        wanted = f'the model "{resource}"' if resource is not None else "a model"
        raise UnknownModelError(
            f"function {self.function} has no access to {wanted}; its models: {known}. Name the resource in its "
            "ResourceAccessPolicies."
        )

    def secret(self, name_or_arn: str, stage: str = CURRENT) -> Secret:
        """The function's secret of that ARN, name or resource Id: the version with that staging label.

        Raises:
            UnknownSecretError: the function has no such secret, or not that version of it.
        """
        return (self.secrets or Secrets()).get(name_or_arn, stage)

    def publish(self, topic: str, payload: Any, content_type: str | None = None) -> None:
        """Publishes `payload` on `topic` as well, once the handler has returned; nothing where it raises.

        It goes along the subscriptions whose source is this function.

        Example::

            context.publish("alarms/press-7", {"score": 0.98})
        """
        if self.published is None:
            self.published = []
            self.unusual = True
        self.published.append(Result(topic, payload, content_type))

    def publish_now(self, topic: str, payload: Any, content_type: str | None = None) -> None:
        """Publishes `payload` at once, also where the handler raises afterwards; from any thread.

        Returns when the agent has taken it for all the subscriptions whose source is this function.

        Raises:
            CodedError: OVERLOADED, BAD_RESULT_TOPIC, MESSAGE_TOO_LARGE.
        """
        self._agent().publish(topic, payload, content_type)

    def invoke(self, function: str, payload: Any = None, *, wait: bool = True) -> Any:
        """Invokes another function of the group, by its Id or its ARN; never through a broker, from any thread.

        Its answer comes back decoded. In an ``async def handler``: ``await asyncio.to_thread(context.invoke, ..)``.

        Args:
            wait: for its answer; else it is enough that there is such a function.

        Raises:
            InvokeError: it failed, took too long, is not there, or waits for this one.
        """
        return self._agent().invoke(function, payload, wait=wait)

    def shadow(self, thing: str) -> ShadowOf:
        """The shadow of a thing, as this core keeps it: to get, update and delete, from any thread."""
        from functions.asking import ShadowOf

        return ShadowOf(self._agent().core, thing)

    def _agent(self) -> Asker:
        asker = self._given.asker
        if asker is None:
            raise CodedError("NO_CORE", "This function does not run on a core.")
        return asker(self)

    def capture(self, *, reason: str = "explicit", input: Any = AS_IT_IS, output: Any = AS_IT_IS) -> None:
        """Keeps this request as a sample for training once the handler has returned; nothing where it raises.

        It is kept whatever the function's capture policy says, and the policy then decides no more about this request.

        Args:
            reason: why, as the sample says it: 1 to 64 printable characters.
            input: in place of the request's payload, whatever can be encoded.
            output: in place of the first result.

        Example::

            if abs(scores[0] - scores[1]) < 0.1:
                context.capture(reason="too close to call", output={"scores": scores})

        Raises:
            ValueError: another reason.
        """
        if not (isinstance(reason, str) and 0 < len(reason) <= MAX_REASON and reason.isprintable()):
            raise ValueError(f"a sample's reason is a text of 1 to {MAX_REASON} printable characters")
        if self.kept is None:
            self.kept = []
            self.unusual = True
        self.kept.append(Kept(reason, input, output))

    @property
    def state_dir(self) -> Path:
        """A directory on this device that is the function's own: kept over restarts and deployments.

        Workers of one function share it. It is the worker's working directory as well.

        Example::

            (context.state_dir / "baseline.json").write_text(json.dumps(baseline))
        """
        from pathlib import Path

        return Path(self._given.state_dir)

    @property
    def logger(self) -> LoggerAdapter[Any]:
        """A logger whose lines carry the request's id and end up in the agent's log."""
        from functions.logs import request_logger  # logging costs a worker 15 ms of its start: only where it is used

        return request_logger(self.function, self.request)


Handler: TypeAlias = Callable[[Any, Context], Any]
AsyncHandler: TypeAlias = Callable[[Any, Context], Awaitable[Any]]
BatchHandler: TypeAlias = Callable[[Sequence[Any], Sequence[Context]], Sequence[Any]]
