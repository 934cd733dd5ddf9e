"""Keeps dlr from calling its vendor's server, by taking the place of the module that would."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import TypeVar

_F = TypeVar("_F", bound=Callable[..., object])

# Releases before 1.3 import the second name.
_MODULES = ("dlr.counter", "dlr.counter.phone_home")


def stay_home() -> None:
    """Puts modules that do nothing where dlr imports the ones that call home. Idempotent; imports nothing.

    An empty `__path__` makes the import of any further module of dlr.counter fail, rather than call.
    """
    for name in _MODULES:
        if not getattr(sys.modules.get(name), "stays_home", False):
            module = types.ModuleType(name)
            module.__dict__.update(call_phone_home=_unchanged, __path__=[], stays_home=True)
            sys.modules[name] = module


def _unchanged(function: _F) -> _F:
    return function
