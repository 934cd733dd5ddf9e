"""Reading the fields of an untyped document: every problem is noted with its place, none ends the reading.

A `Fields` wraps one object of the document. Each getter takes a key once and returns a usable value, also where the
document's is wrong; what was never taken is an unknown key when `done` is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

BAD: Final = "BAD_DOCUMENT"
UNSUPPORTED: Final = "NOT_SUPPORTED"
FORBIDDEN: Final = "NOT_ALLOWED"
MAX_SHOWN: Final = 60  # characters of a wrong value that a message repeats


class Problems:
    """What is wrong with a document, gathered while it is read, and what is only worth a warning."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []
        self.unsupported: list[tuple[str, str]] = []  # (path, text) of what is there in `found` too
        self.warnings: list[str] = []

    def note(self, code: str, where: str, text: str) -> None:
        """Adds a problem: `where` is the field's path, `text` says what is wrong and what to do."""
        self.found.append((code, f"{where}: {text}" if where else text))
        if code == UNSUPPORTED:
            self.unsupported.append((where, text))

    def warn(self, where: str, text: str) -> None:
        """Adds what the document asks for and this core does not do."""
        self.warnings.append(f"{where}: {text}" if where else text)


def nearest(word: str, known: Sequence[str]) -> str:
    """`` (did you mean "x"?)``, or nothing where no known word is near."""
    import difflib  # only where something is wrong

    lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(word.lower(), list(lower), n=1, cutoff=0.6)
    return f' (did you mean "{lower[close[0]]}"?)' if close else ""


def shown(value: object) -> str:
    """A value as a message repeats it: short, on one line."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + ".."


class Fields:
    """One object of a document at a path; getters note problems and return a usable value."""

    def __init__(self, value: object, where: str, problems: Problems) -> None:
        self.where = where
        self.problems = problems
        self._known: list[str] = []
        self._values: dict[str, Any] = {}
        if isinstance(value, dict):
            self._values = value
        else:
            self.bad("", f"must be an object, not {shown(value)}")

    def path(self, key: str) -> str:
        """The path of a key below this object."""
        return ".".join(p for p in (self.where, key) if p)

    def bad(self, key: str, text: str, code: str = BAD) -> None:
        """Notes a problem with a key of this object."""
        self.problems.note(code, self.path(key), text)

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(key) is not None

    def take(self, key: str) -> Any:
        """The raw value, or None; the key counts as known."""
        self._known.append(key)
        return self._values.get(key)

    def text(self, key: str, *, required: bool = False, pattern: str | None = None, what: str = "") -> str | None:
        """A text that fits `pattern` wholly; `what` says in words what it must be."""
        value = self.take(key)
        if value is None:
            if required:
                self.bad(key, "is missing")
            return None
        if not isinstance(value, str) or not value or (pattern and not re.fullmatch(pattern, value)):
            self.bad(key, f"must be {what or 'a text'}, not {shown(value)}")
            return None
        if not value.isprintable():
            self.bad(key, f"holds characters that cannot be printed: {shown(value)}")
            return None
        return value

    def choice(self, key: str, choices: Sequence[str], default: str | None = None) -> str | None:
        """One of `choices`."""
        value = self.take(key)
        if value is None:
            return default
        if value not in choices:
            self.bad(key, f"must be one of {', '.join(choices)}, not {shown(value)}")
            return default
        return str(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.take(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.bad(key, f"must be true or false, not {shown(value)}")
            return default
        return value

    def number(self, key: str, default: float | None, low: float, high: float) -> float | None:
        """A number in [low, high]."""
        value = self.take(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            self.bad(key, f"must be a number from {low:g} to {high:g}, not {shown(value)}")
            return default
        return value

    def integer(self, key: str, default: int | None, low: int, high: int) -> int | None:
        """A whole number in [low, high]."""
        value = self.take(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.bad(key, f"must be a whole number from {low} to {high}, not {shown(value)}")
            return default
        return value

    def fields(self, key: str) -> Fields | None:
        """The object below `key`, or None where there is none."""
        value = self.take(key)
        if value is None:
            return None
        return Fields(value, self.path(key), self.problems)

    def items(self, key: str, limit: int) -> Iterator[tuple[object, str]]:
        """The elements of the list below `key`, at most `limit`, each with its path."""
        value = self.take(key)
        if value is None:
            return
        if not isinstance(value, list):
            self.bad(key, f"must be a list, not {shown(value)}")
            return
        if len(value) > limit:
            self.bad(key, f"has {len(value)} entries; at most {limit} are allowed")
        for i, element in enumerate(value[:limit]):
            yield element, f"{self.path(key)}[{i}]"

    def done(self) -> None:
        """Notes each key that no getter asked for."""
        for key in self._values:
            if key not in self._known:
                self.bad("", f"unknown key {shown(key)}{nearest(str(key), self._known)}")
