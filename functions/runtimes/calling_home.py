"""Keeps runtimes from calling their vendors' servers.

dlr's module that would is replaced by one that does nothing. ONNX Runtime sends telemetry by default since 1.29, from a
thread with a database of its own; it does nothing of the kind where a variable says so before it is loaded.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from typing import TypeVar

_F = TypeVar("_F", bound=Callable[..., object])

# Releases before 1.3 import the second name.
_MODULES = ("dlr.counter", "dlr.counter.phone_home")
_ONNX_QUIET = "ORT_DISABLE_TELEMETRY"  # Privacy.md of the package


def stay_home() -> None:
    """To be called ahead of a runtime's import, and of a function's code. Idempotent; imports nothing.

    What the function's environment says of ONNX Runtime's telemetry holds. Modules that do nothing take the place of
    those of dlr that call home: an empty `__path__` makes the import of any further one fail, rather than call.
    """
    os.environ.setdefault(_ONNX_QUIET, "1")
    for name in _MODULES:
        if not getattr(sys.modules.get(name), "stays_home", False):
            module = types.ModuleType(name)
            module.__dict__.update(call_phone_home=_unchanged, __path__=[], stays_home=True)
            sys.modules[name] = module


def _unchanged(function: _F) -> _F:
    return function
