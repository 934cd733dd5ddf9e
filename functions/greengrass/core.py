"""This worker's way to the agent, as V1's modules find it, and V1's secrets manager, which needs no agent."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from typing import Any

from functions.core import CallError, Core
from functions.secrets import CURRENT, Secrets, UnknownSecretError


class LambdaCore(Core):
    """One worker's way to the agent, and its secrets.

    Args:
        send: writes a frame at once; from any thread.
        secrets: the function's.
    """

    def __init__(self, send: Callable[[bytes], None], secrets: Secrets) -> None:
        super().__init__(send, threading.Event.wait)  # a thread of its own reads the replies
        self._secrets = secrets

    def secret(self, request: bytes) -> bytes:
        """V1's answer to ``{"SecretId", "VersionStage"}``: a version, or ``{"Status", "Message"}``."""
        try:
            asked = json.loads(request)
            found = self._secrets.get(asked["SecretId"], asked.get("VersionStage") or CURRENT)
        except UnknownSecretError as error:
            return json.dumps({"Status": 404, "Message": str(error)}).encode()
        except (ValueError, KeyError, TypeError):
            return json.dumps({"Status": 400, "Message": "The request has no SecretId"}).encode()
        value: dict[str, Any] = (
            {"SecretString": found.value}
            if isinstance(found.value, str)
            else {"SecretBinary": base64.b64encode(found.value).decode()}
        )
        said = {"ARN": found.arn, "Name": found.name, "VersionId": found.version_id, **value}
        return json.dumps({**said, "VersionStages": list(found.stages), "CreatedDate": found.created_ms}).encode()


_current: LambdaCore | None = None


def current() -> LambdaCore:
    """This worker's core.

    Raises:
        CallError: NO_CORE, this process is no worker with V1 code.
    """
    if _current is None:
        raise CallError("NO_CORE", "This process is no worker of a deployed function.")
    return _current


def become_current(core: LambdaCore) -> None:
    """Makes it the one that V1's modules find."""
    global _current
    _current = core
