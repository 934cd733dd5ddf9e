"""V1's face for calls of one function by another, without the SDK."""

from __future__ import annotations

from typing import Any

from greengrass_ipc_python_sdk.ipc_client import IPCClient, IPCException


class GreengrassRuntimeException(Exception):  # noqa: N818 - its name is V1's
    """A call could not be made."""


class GreengrassServiceMessage:
    """What is sent.

    Attributes:
        payload: bytes.
        client_context: base64 of JSON, or nothing.
        invocation_type: ``RequestResponse`` or ``Event``.
    """

    def __init__(
        self, payload: Any = b"", client_context: Any = b"", invocation_type: str = "RequestResponse", **more: Any
    ) -> None:
        self.payload = payload
        self.client_context = client_context
        self.invocation_type = invocation_type
        self.extension_map = more


class GreengrassServiceCallOutput:
    """What came back: its payload, and ``func_err``, empty where the call succeeded."""

    def __init__(self, payload: bytes, func_err: str) -> None:
        self.payload = payload
        self.func_err = func_err


class GreengrassServiceClient:
    """Calls one function.

    Args:
        function_arn: which.
    """

    def __init__(self, function_arn: str, endpoint: str = "localhost", port: int | None = None) -> None:
        self.function_arn = function_arn
        self._ipc = IPCClient(endpoint, port)

    def call(self, message: GreengrassServiceMessage) -> GreengrassServiceCallOutput:
        """Sends a message and waits for what comes of it, unless it is an Event.

        Raises:
            GreengrassRuntimeException: nobody takes it.
        """
        try:
            kind = message.invocation_type
            id = self._ipc.post_work(self.function_arn, message.payload, message.client_context, kind)
            if kind == "Event":
                return GreengrassServiceCallOutput(b"", "")
            return GreengrassServiceCallOutput(*self._ipc.get_work_result(self.function_arn, id))
        except IPCException as error:
            raise GreengrassRuntimeException(str(error)) from error
