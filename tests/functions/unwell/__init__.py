"""Fails at its import in the way that its environment asks for."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

from functions.sdk import Context

MODE = os.environ["MODE"]

if MODE == "raise":
    raise RuntimeError("not today")
if MODE == "crash":
    ctypes.string_at(0)
if MODE == "exit":
    raise SystemExit(3)
if MODE == "hang":
    while True:
        time.sleep(0.05)
hoard = []
while MODE == "eat":
    hoard.append(bytearray(b"x" * (8 << 20)))
    time.sleep(0.005)


def handler(event: dict[str, Any], context: Context) -> dict[str, Any]:
    return {"scores": context.model("model").predict({"data": [event["x"]]})["probabilities"][0]}
