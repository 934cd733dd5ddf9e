"""Whether what is installed is what a model requires: ``{"mxnet": "1.9", "numpy": ">=1.23,<1.24"}``.

Greengrass V1's rule for MXNet, for all runtimes: a model runs on the version that it was made for, or not at all.
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Final

from functions.errors import StartError

_CLAUSE = re.compile(r"(?P<how>==|!=|>=|<=|>|<)?\s*(?P<version>\d+(\.\d+)*)(?P<any>\.\*)?")
_ORDERS: Final[Mapping[str, Callable[[int, int], bool]]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


def check(requires: Mapping[str, str], known: Mapping[str, str]) -> None:
    """Compares each requirement with what is there.

    Args:
        requires: versions by name: a runtime's, ``python``, or a package's as pip knows it.
        known: versions of what is no package, or has several package names.

    Raises:
        StartError: RUNTIME_VERSION_MISMATCH with both versions.
    """
    for name, wanted in requires.items():
        installed = known.get(name) or _installed(name)
        if installed is None or not matches(installed, wanted):
            has = f"{name} {installed}" if installed else f"no {name}"
            raise StartError(
                "RUNTIME_VERSION_MISMATCH",
                f"It requires {name} {wanted}, and {sys.executable} has {has}. Install that version there, name an"
                " interpreter that has it, or deploy a model that was made for the installed one.",
            )


def matches(installed: str, wanted: str) -> bool:
    """Whether a version is one of those wanted: clauses of ``== != >= <= > <``, all of which hold, parted by commas.

    A version without a sign, or with ``.*``, stands for all that begin with it: 1.9 for 1.9.1. What follows the numbers
    of an installed version (rc1, +cpu) is not looked at.
    """
    found = re.match(r"\d+(\.\d+)*", installed)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    return all(_holds(numbers, clause.strip()) for clause in wanted.split(","))


def _holds(installed: list[int], clause: str) -> bool:
    match = _CLAUSE.fullmatch(clause)
    if match is None:
        return False
    wanted = [int(part) for part in match["version"].split(".")]
    how = match["how"] or "=="
    if how in _ORDERS:
        pairs = list(zip_longest(installed, wanted, fillvalue=0))
        differing = next((pair for pair in pairs if pair[0] != pair[1]), (0, 0))
        return _ORDERS[how](*differing)
    begins = match["any"] is not None or match["how"] is None
    same = installed[: len(wanted)] == wanted if begins else _padded(installed) == _padded(wanted)
    return same == (how == "==")


def _padded(numbers: list[int]) -> list[int]:
    """Without the zeros at its end: 1.0 is 1."""
    while numbers and numbers[-1] == 0:
        numbers = numbers[:-1]
    return numbers


def _installed(name: str) -> str | None:
    if name == "python":
        return ".".join(map(str, sys.version_info[:3]))
    from importlib import metadata  # 15 ms and 1.5 MB, which a model without `Requires` does without

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
