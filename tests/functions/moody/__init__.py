"""Fails in the way that the event asks for."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Any

from functions.sdk import Context

print("moody says hello")


def handler(event: dict[str, Any], context: Context) -> Any:
    mood = event["mood"]
    if mood == "raise":
        raise RuntimeError("not today")
    if mood == "exit":
        sys.stderr.write("I am off\n")
        os._exit(7)
    if mood == "segfault":
        ctypes.string_at(0)
    if mood == "hang":  # in native code that keeps the interpreter: not even its pulse answers
        ctypes.PyDLL(None).pause()
    if mood == "loop":
        while True:
            time.sleep(0.01)
    if mood == "eat":
        hoard = []
        while True:
            hoard.append(bytearray(8 << 20))
            time.sleep(0.01)
    if mood == "nothing":
        return None
    if mood == "nan":
        return {"x": float("nan")}
    return {"mood": mood}
