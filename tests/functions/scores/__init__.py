"""Runs the model of 16 floats to 3 scores that the tests deploy."""

from __future__ import annotations

from typing import Any

from functions.sdk import Context


def handler(event: dict[str, Any], context: Context) -> dict[str, Any]:
    scores = context.model("model").predict({"data": [event["x"]]})["probabilities"][0]
    return {"scores": scores}
