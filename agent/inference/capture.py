"""What becomes training data: the decision and the sample. Pure; randomness and time are arguments."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass

from agent.inference.requests import Origin
from agent.messages import JSON


@dataclass(frozen=True, slots=True)
class Capture:
    """A function's capture policy: keep each request with probability `rate`, in [0, 1]."""

    rate: float


def decide(policy: Capture, random: Callable[[], float]) -> str | None:
    """The reason to keep a request as a sample, or None.

    Source: ML Feedback connector, RANDOM_SAMPLING: kept when the figure is strictly below the rate.
    """
    return "random" if random() < policy.rate else None


def sample(
    *,
    sample_id: str,
    reason: str,
    origin: Origin,
    topic: str,
    timestamp: str,
    given: tuple[str, bytes],
    made: tuple[str, bytes] | None,
) -> bytes:
    """A sample as JSON.

    Args:
        given, made: the request's and the result's (content type, payload); JSON goes in as it is, anything else as
        base64. made: None where the function gave no result.
    """
    head = {
        "id": sample_id,
        "reason": reason,
        "function": origin.function,
        "model": origin.model,
        "version": origin.version,
        "deployment": origin.deployment,
        "topic": topic,
        "timestamp": timestamp,
    }
    parts = (json.dumps(head)[:-1].encode(), b', "input": ', _value(given), b', "output": ', _value(made), b"}")
    return b"".join(parts)


def _value(part: tuple[str, bytes] | None) -> bytes:
    if part is None:
        return b"null"
    content_type, payload = part
    return payload if content_type == JSON else b'"' + base64.b64encode(payload) + b'"'
