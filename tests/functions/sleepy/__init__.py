"""Takes as long as the event says."""

from __future__ import annotations

import time
from typing import Any

from functions.sdk import Context


def handler(event: dict[str, Any], context: Context) -> dict[str, Any]:
    time.sleep(event["seconds"])
    return {"slept": event["seconds"]}
