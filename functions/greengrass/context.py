"""The context that a V1 handler gets with its event: AWS Lambda's attributes, with what this core knows."""

from __future__ import annotations

import base64
import json
import time
from types import SimpleNamespace
from typing import Any, Final

from functions.config import Config
from functions.greengrass import arns

USUAL_TIMEOUT_S: Final = 3.0  # V1's


class ClientContext:
    """What the sender says beside the payload.

    Attributes:
        client, env: as the function that invokes this one gave them.
        custom: as well; for a message, ``{"subject": its topic}``.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        client, env, custom = (values.get(key) for key in ("client", "env", "custom"))
        self.client = SimpleNamespace(**client) if isinstance(client, dict) else None
        self.env: dict[str, Any] = env if isinstance(env, dict) else {}
        self.custom: dict[str, Any] = custom if isinstance(custom, dict) else {}

    def __repr__(self) -> str:
        return f"ClientContext(custom={self.custom!r})"


class LambdaContext:
    """One for each request.

    Attributes:
        aws_request_id: the request's id.
        invoked_function_arn, function_name, function_version: of the function.
        client_context: what came beside the payload.
        memory_limit_in_mb: MemorySize; 0 where there is no limit.
        identity: nothing is known of who sent it.
    """

    def __init__(self, config: Config, request: str, topic: str, client_context: str | None) -> None:
        arn = arns.of(config)
        self.aws_request_id = request
        self.invoked_function_arn = arn
        self.function_name = arns.name_of(arn)
        self.function_version = arns.qualifier_of(arn) or "$LATEST"
        self.client_context = ClientContext(_decoded(client_context, topic))
        self.memory_limit_in_mb = (config.memory_kb or 0) // 1024
        self.identity = SimpleNamespace(cognito_identity_id=None, cognito_identity_pool_id=None)
        self.log_group_name = f"/aws/greengrass/Lambda/{self.function_name}"
        self.log_stream_name = config.function
        self._deadline_s = time.monotonic() + (config.timeout_s or USUAL_TIMEOUT_S)

    def get_remaining_time_in_millis(self) -> int:
        """How long the handler still may take; 0 where it is late."""
        return max(0, int((self._deadline_s - time.monotonic()) * 1000))

    def log(self, message: Any) -> None:
        """Writes a line into the agent's log."""
        print(message, flush=True)


def _decoded(client_context: str | None, topic: str) -> dict[str, Any]:
    if client_context is None:
        return {"custom": {"subject": topic}}
    try:
        values = json.loads(base64.b64decode(client_context)) if client_context else {}
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
