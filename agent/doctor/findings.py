"""What one look found. Pure."""

from __future__ import annotations

from agent.values import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination.

    Attributes:
        name: what was looked at.
        status: ``ok``; ``warn``: it works, but not as well as it could; ``fail``: it does not work.
        text: what was found, with its figures.
        remedy: what to do about it; empty where there is nothing to do.
        code: of the error that was met; empty where it was none.
    """

    name: str
    status: str
    text: str
    remedy: str = ""
    code: str = ""


def ok(name: str, text: str) -> Finding:
    return Finding(name, "ok", text)


def warned(name: str, text: str, remedy: str) -> Finding:
    return Finding(name, "warn", text, remedy)


def failed(name: str, text: str, remedy: str, code: str = "") -> Finding:
    return Finding(name, "fail", text, remedy, code)
