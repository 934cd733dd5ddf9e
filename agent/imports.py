"""Keeps out of the agent what its libraries import and it never comes to: for memory, and for its start."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final


@contextlib.contextmanager
def left_out(name: str) -> Iterator[None]:
    """Within it, importing the module `name` fails, as where it is not installed. For a library that does without."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment] # as the language has it for this
    try:
        yield
    finally:
        del sys.modules[name]


@contextlib.contextmanager
def postponed(name: str) -> Iterator[None]:
    """Within it, importing the module `name` gives one that loads the real one once it is asked for something."""
    if name in sys.modules:
        yield
        return
    package, _, last = name.rpartition(".")
    stand_in = ModuleType(name)

    def __getattr__(attribute: str) -> Any:  # noqa: N807 - PEP 562
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]  # asked while others are still imported
        return getattr(importlib.import_module(name), attribute)

    stand_in.__getattr__ = __getattr__  # type: ignore[method-assign]
    if package:
        setattr(importlib.import_module(package), last, stand_in)
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]  # whoever imports it from now on gets the real one


# What libraries import for cases that are not ours: inspect, for dataclasses and asyncio, takes 1 MB and 6 ms with ast
# and dis; bz2 and lzma, for shutil's archives, 0.4 MB; what traceback shows sources with and subprocess reads texts in
# other encodings with, 3 ms.
NOT_OURS: Final = ("inspect", "bz2", "lzma", "textwrap", "tokenize", "locale")


@contextlib.contextmanager
def lean(*, encrypted: bool) -> Iterator[None]:
    """Within it, libraries are imported without what they come to only in cases that are not ours.

    ssl, which asyncio and paho do without where it is not there, takes 0.7 MB and 6 ms.

    Args:
        encrypted: whether a link is, so that ssl is needed.
    """
    with contextlib.ExitStack() as stack:
        for name in NOT_OURS:
            stack.enter_context(postponed(name))
        if not encrypted:
            stack.enter_context(left_out("ssl"))
        yield
