"""Errors by whose fault they are; each carries a stable code and says what to do about it.

An error crosses a process, a socket or a broker as its code and its message, never as an object. The codes that a user
can meet are listed in docs/errors.md with their remedies; tests/test_errors.py holds the two together.
"""

from __future__ import annotations


class AgentError(Exception):
    """An expected failure with a stable code.

    Args:
        code: upper-case words joined by underscores; never changes once released.
        message: what happened and with which value, in one sentence or two.
        remedy: what the reader can do about it; may be empty where the message says it.
    """

    def __init__(self, code: str, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy

    @property
    def text(self) -> str:
        """The message and its remedy as one text."""
        return f"{self.message} {self.remedy}".strip()

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


class ConfigError(AgentError):
    """The settings cannot be used; the command ends with exit code 78 (EX_CONFIG)."""


class RejectedError(AgentError):
    """The sender's fault: answered and acknowledged, never tried again."""


class TransientError(AgentError):
    """The world's fault: worth another try, bounded and with jitter."""


class IntegrityError(AgentError):
    """Bytes differ from what was promised: discarded and reported, never used."""


class FunctionError(AgentError):
    """A function or its worker failed: the request is answered with this code."""
