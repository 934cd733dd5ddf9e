"""Runs the tests' model in the way that its environment asks for: well, or badly in one of several ways."""

from __future__ import annotations

import os
import time
from typing import Any

from functions.sdk import Context

MODE = os.environ["MODE"]


def handler(event: dict[str, Any], context: Context) -> dict[str, Any]:
    if MODE == "crash":
        os._exit(3)
    if MODE == "raise":
        raise RuntimeError("not today")
    if MODE == "slow":
        time.sleep(0.05)
    return {"scores": context.model("model").predict({"data": [event["x"]]})["probabilities"][0]}
