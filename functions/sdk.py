"""What the author of a function imports: the context of a request, and results that name their topic.

A function's folder has an ``__init__.py`` with ``handler(event, context)``, and optionally
``batch_handler(events, contexts)``, which gets several requests at once and returns a list with a result for each (an
exception as an element fails that one alone). Arrays in an event share the message's memory and cannot be written to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from functions.errors import RequestError

if TYPE_CHECKING:
    from logging import LoggerAdapter

    from functions.runtimes.base import Model

__all__ = ["Context", "RequestError", "Result", "UnknownModelError"]


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


class Context:
    """What a handler may know and use beside its event. One for each request.

    Attributes:
        function: the function's Id.
        request: the request's id, as its answer carries it.
        topic: the topic it came on.
        content_type: how its payload is encoded, ``application/json``, ``application/msgpack`` or
            ``application/octet-stream``; its answer will be too.
        models: all of the function's models by their resource Ids.
        deployment: the deployment's id; empty outside one.
        published: what `publish` was given so far.
    """

    __slots__ = ("content_type", "deployment", "function", "models", "published", "request", "topic")

    def __init__(
        self,
        function: str,
        request: str,
        topic: str,
        models: Mapping[str, Model] | None = None,
        deployment: str = "",
        content_type: str = "application/json",
    ) -> None:
        self.function = function
        self.request = request
        self.topic = topic
        self.models: Mapping[str, Model] = models if models is not None else {}
        self.deployment = deployment
        self.content_type = content_type
        self.published: list[Result] | None = None

    def model(self, resource: str | None = None) -> Model:
        """The model of that resource Id; without one, the function's first.

        Raises:
            UnknownModelError: the function has no such model; the message names those that it has.
        """
        try:
            return self.models[resource] if resource is not None else next(iter(self.models.values()))
        except (KeyError, StopIteration):
            pass
        known = ", ".join(self.models) or "none"
        wanted = f'the model "{resource}"' if resource is not None else "a model"
        raise UnknownModelError(
            f"function {self.function} has no access to {wanted}; its models: {known}. Name the resource in its "
            "ResourceAccessPolicies."
        )

    def publish(self, topic: str, payload: Any, content_type: str | None = None) -> None:
        """Publishes `payload` on `topic` as well, once the handler has returned; nothing where it raises."""
        if self.published is None:
            self.published = []
        self.published.append(Result(topic, payload, content_type))

    @property
    def logger(self) -> LoggerAdapter[Any]:
        """A logger whose lines carry the request's id and end up in the agent's log."""
        from functions.logs import request_logger  # logging costs a worker 15 ms of its start: only where it is used

        return request_logger(self.function, self.request)
