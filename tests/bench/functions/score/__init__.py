"""The bench's function: 16 floats in, three scores out."""

from __future__ import annotations

from typing import Any

from functions.sdk import Context


def handler(event: dict[str, Any], context: Context) -> dict[str, Any]:
    outputs = context.model().predict({"data": [event["x"]]})
    return {"id": event["id"], "scores": outputs["probabilities"][0].tolist()}
