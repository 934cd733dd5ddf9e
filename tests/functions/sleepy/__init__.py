"""Takes as long as the event says: some seconds, or until a file is there."""

from __future__ import annotations

import os
import time
from typing import Any

from functions.sdk import Context


def handler(event: dict[str, Any], context: Context) -> dict[str, Any]:
    if "until" in event:
        while not os.path.exists(event["until"]):
            time.sleep(0.005)
        return {"slept": None}
    time.sleep(event["seconds"])
    return {"slept": event["seconds"]}
