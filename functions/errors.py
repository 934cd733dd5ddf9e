"""Failures of a worker that a user gets to see: a stable code and a message, which is all that crosses to the agent."""

from __future__ import annotations


class CodedError(Exception):
    """A failure with a stable code.

    Args:
        code: upper-case words joined by underscores.
        message: what happened and, where something can be done about it, what to do.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class StartError(CodedError):
    """The worker can never serve as it is configured: sent as FAILED."""


class RequestError(CodedError):
    """This one request cannot be served: its sender is answered with the code and the message.

    A function raises it to refuse a request: ``raise RequestError("WINDOW_TOO_SHORT", "100 samples are needed.")``.
    """
