"""Fails in the way that the event asks for."""

from __future__ import annotations

import os
import signal
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
        os.kill(os.getpid(), signal.SIGSEGV)
    if mood == "hang":  # stopped: not even its pulse answers
        os.kill(os.getpid(), signal.SIGSTOP)
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
