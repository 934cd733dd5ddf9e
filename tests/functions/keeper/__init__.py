"""Says of a secret what can be said without giving it away: whether it is the text it is asked about."""

from __future__ import annotations

import os
from typing import Any

from functions.sdk import Context, RequestError, UnknownSecretError


def handler(event: Any, context: Context) -> Any:
    if "list" in event:
        return os.listdir(event["list"])
    try:
        secret = context.secret(event["secret"], **({"stage": event["stage"]} if "stage" in event else {}))
    except UnknownSecretError as error:
        raise RequestError("NO_SUCH_SECRET", str(error)) from None
    value = secret.value.hex() if isinstance(secret.value, bytes) else secret.value
    return {
        "right": value == event["guess"],
        "version": secret.version_id,
        "stages": sorted(secret.stages),
        "shown": repr(secret),
        "in_environment": any(value in text for text in os.environ.values()),
    }
