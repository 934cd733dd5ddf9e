"""The texts of answers: where one may go, whom a payload names, and what an error looks like. Pure."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import msgpack

from agent.errors import AgentError, RejectedError
from agent.inference.requests import Origin
from agent.messages import BINARY, JSON, MSGPACK
from agent.routing.topics import matches, name_problem
from agent.settings import Topics

KINDS = (JSON, MSGPACK, BINARY)


def kind_of(content_type: str | None, default: str) -> str:
    """Which of our three content types a message has: what it says itself, without parameters, else `default`."""
    if content_type is None or content_type in KINDS:
        return content_type or default
    name = content_type.partition(";")[0].strip().lower()
    return name if name in KINDS else default


def own_filters(topics: Topics) -> tuple[str, ...]:
    """Filters over all topics that the agent itself uses and what lies below them."""
    templates = (topics.deployments, topics.deployment_status, topics.state, topics.capture, topics.errors)
    return tuple("/".join(["+" if "{" in level else level for level in each.split("/")] + ["#"]) for each in templates)


def answer_topic_problem(topic: str | None, own: tuple[str, ...]) -> RejectedError | None:
    """Why nobody can be answered on `topic`; None where one can, or where there is none."""
    if topic is None:
        return None
    problem = name_problem(topic)
    if problem is None and topic.startswith("$"):
        problem = f"the topic {topic!r} starts with '$'"
    if problem is None and any(matches(each, topic) for each in own):
        problem = f"the topic {topic!r} is one of the agent's own"
    if problem is None:
        return None
    return RejectedError("BAD_RESPONSE_TOPIC", f"Nobody is answered there: {problem}.", "Name a topic of your own.")


def read_envelope(payload: bytes, kind: str, *, endpoint: bool = False) -> tuple[str | None, str | None]:
    """The id and reply topic that a payload names, where no worker could read it; None for what it does not name."""
    if kind == BINARY:
        return None, None
    try:
        event: Any = msgpack.unpackb(payload) if kind == MSGPACK else json.loads(payload)
    except (ValueError, msgpack.UnpackException, RecursionError):
        return None, None
    if not isinstance(event, dict):
        return None, None
    meta = event.get("meta")
    named, reply_to = (meta.get("id"), meta.get("reply_to")) if isinstance(meta, dict) else (None, None)
    if endpoint and named is None:
        named = event.get("id")
    named = str(named) if type(named) is int else named
    return (named if isinstance(named, str) else None, reply_to if isinstance(reply_to, str) else None)


def error_payload(error: AgentError, meta: tuple[tuple[str, str], ...], kind: str) -> tuple[str, bytes]:
    """An error as (content type, payload), in msgpack for who sent msgpack and in JSON for all others."""
    body = {"error": {"code": error.code, "message": error.text}, "meta": dict(meta)}
    return (MSGPACK, msgpack.packb(body)) if kind == MSGPACK else (JSON, json.dumps(body).encode())


def correlation_text(correlation: bytes) -> str:
    """Correlation data as a request's id: its text, or hex where it is no UTF-8."""
    try:
        return correlation.decode()
    except UnicodeDecodeError:
        return correlation.hex()


def provenance(request_id: str, origin: Origin) -> tuple[tuple[str, str], ...]:
    """Which request, model, version and deployment a result comes from: the user properties, and ``meta``."""
    return (("request", request_id), *origin_pairs(origin.model, origin.version, origin.deployment))


@lru_cache(maxsize=256)
def origin_pairs(model: str | None, version: str | None, deployment: str | None) -> tuple[tuple[str, str], ...]:
    """What of it is the same for all results of a worker."""
    pairs = (("model", model), ("version", version), ("deployment", deployment))
    return tuple((name, value) for name, value in pairs if value is not None)
