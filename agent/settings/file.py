"""YAML read so that every value knows its line, and every problem is kept instead of ending the reading.

It knows plain types (text, number, flag, list, mapping), and nothing of what the settings mean. No value is ever built
from a tag of the file, so a file can make nothing but text, numbers and flags.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from agent import yaml_nodes
from agent.errors import ConfigError
from agent.values import dataclass
from agent.yaml_nodes import KIND, LINE, MAPPING, SCALAR, SEQUENCE, TAG, VALUE

if TYPE_CHECKING:
    from agent.yaml_nodes import Node, Read

_NULL = "tag:yaml.org,2002:null"
_FLAG = "tag:yaml.org,2002:bool"
_TRUE = frozenset({"true", "yes", "on"})


class Problems:
    """Everything wrong (and everything doubtful) in one file, by line.

    Args:
        strict: whether what only keeps a link from connecting, such as a certificate that has expired, makes the
            settings unusable; else it is a warning, as the core works on without that link.
    """

    def __init__(self, file: Path, *, strict: bool = True) -> None:
        self.file = file
        self._strict = strict
        self._errors: list[tuple[int, str]] = []
        self._warnings: list[tuple[int, str]] = []

    def add(self, line: int, text: str) -> None:
        """Keeps a problem that makes the file unusable."""
        if (line, text) not in self._errors:
            self._errors.append((line, text))

    def unready(self, line: int, text: str) -> None:
        """Keeps what keeps a link from connecting until the files that it names are mended."""
        if self._strict:
            self.add(line, text)
        else:
            self.warn(line, text)

    def warn(self, line: int, text: str) -> None:
        """Keeps something that the user should know of and that stops nothing."""
        if (line, text) not in self._warnings:
            self._warnings.append((line, text))

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings in order of their lines."""
        return tuple(f"{self.file.name} line {line}: {text}" for line, text in sorted(self._warnings))

    def raise_if_any(self) -> None:
        """Raises one ConfigError("BAD_SETTINGS") that lists every problem in order of the lines."""
        if not self._errors:
            return
        count = "a problem" if len(self._errors) == 1 else f"{len(self._errors)} problems"
        lines = [f"  line {line}: {text}" for line, text in sorted(self._errors)]
        raise ConfigError(
            "BAD_SETTINGS",
            "\n".join([f"{self.file} has {count}:", *lines]),
            "\nCorrect the lines named and run `marram check`; docs/settings.md explains every key.",
        )


@dataclass(frozen=True)
class Value:
    """One value of the file: its node, and its name as a user would say it (``links.cloud.url``).

    The readers below return None after noting the problem; the caller goes on with a default, so that the rest of the
    file is looked at too.
    """

    node: Node
    name: str
    problems: Problems

    @property
    def line(self) -> int:
        """The line on which the value begins, counted from 1."""
        return int(self.node[LINE])

    def problem(self, text: str) -> None:
        """Notes that something is wrong with this value."""
        self.problems.add(self.line, text)

    def unready(self, text: str) -> None:
        """Notes that a file which this value names cannot be used now."""
        self.problems.unready(self.line, text)

    @property
    def is_mapping(self) -> bool:
        """Whether the value has keys."""
        return bool(self.node[KIND] == MAPPING)

    @property
    def word(self) -> str | None:
        """The value as it is written where it is one word; otherwise None, which is no problem here."""
        return str(self.node[VALUE]) if self.node[KIND] == SCALAR else None

    def text(self) -> str | None:
        """The value as it is written: `7`, `on` and `2026-11-23` are text where text is asked for."""
        if self.word and self._present:
            return self.word
        self.problem(f"`{self.name}` must be text" if self._present else f"`{self.name}` is empty")
        return None

    def flag(self) -> bool | None:
        """true or false."""
        if self.word and self.node[TAG] == _FLAG:
            return self.word.lower() in _TRUE
        self.problem(f"`{self.name}` must be true or false")
        return None

    def integer(self, least: int, most: int) -> int | None:
        """A whole number from `least` to `most`."""
        written = self.word or ""
        number = int(written) if written.isascii() and written.isdigit() and len(written) < 10 else None
        if number is None or not least <= number <= most:
            self.problem(f"`{self.name}` must be a whole number from {least} to {most}")
            return None
        return number

    def items(self) -> list[Value]:
        """The elements of a list; of nothing, none."""
        if self.node[KIND] == SEQUENCE:
            return [Value(node, f"{self.name}[{i}]", self.problems) for i, node in enumerate(self.node[VALUE])]
        if self._present:
            self.problem(f"`{self.name}` must be a list: [..], or a line with `- ` for each")
        return []

    def texts(self) -> list[tuple[Value, str]]:
        """The elements of a list of text, each with where it stands."""
        read = [(item, item.text()) for item in self.items()]
        return [(item, text) for item, text in read if text is not None]

    def mapping(self, known: Collection[str] | None = None) -> dict[str, Value]:
        """The values by their keys; keys that are not `known` are noted with the nearest that is.

        Args:
            known: the keys allowed; None allows any.
        """
        if not self.is_mapping:
            if self._present:
                self.problem(f"{self._called} must be a mapping, `key: value`")
            return {}
        found: dict[str, Value] = {}
        for key_node, node in self.node[VALUE]:
            key = Value(key_node, f"a key of {self._called}", self.problems)
            word = key.text()
            if word is None or not self._key_is_good(key, word, known, found):
                continue
            found[word] = Value(node, f"{self.name}.{word}".lstrip("."), self.problems)
        return found

    def _key_is_good(self, key: Value, word: str, known: Collection[str] | None, found: dict[str, Value]) -> bool:
        if word in found:
            key.problem(f"the key `{word}` is there twice, first on line {found[word].line}")
            return False
        if known is not None and word not in known:
            key.problem(f"unknown key `{word}`{self._place}; {nearest(word, known)}")
            return False
        return True

    @property
    def _present(self) -> bool:
        return self.word is None or not (self.node[TAG] == _NULL or not self.word)

    @property
    def _called(self) -> str:
        return f"`{self.name}`" if self.name else "the file"

    @property
    def _place(self) -> str:
        return f" in `{self.name}`" if self.name else ""


def nearest(word: str, known: Collection[str]) -> str:
    """Which known word was probably meant, or all of them where none is near."""
    import difflib  # only where something is wrong

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    return "known are " + ", ".join(f"`{each}`" for each in sorted(known))


def read(file: Path, problems: Problems, begun: Read | None = None) -> Value | None:
    """The file's root value, or None where it is no YAML (noted in `problems`). Blocks.

    Args:
        begun: gives what is in the file, where it is being read already.

    Raises:
        ConfigError: SETTINGS_UNREADABLE, there is no such file or it cannot be read.
    """
    root, line, wrong = begun() if begun else yaml_nodes.read(file)
    if root is None:
        problems.add(line, wrong)
        return None
    return Value(root, "", problems)
