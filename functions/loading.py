"""A function's code: loaded by its path under a name of its own, and where in it an exception was raised."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, NamedTuple

from functions.errors import StartError

_CO_COROUTINE: Final = 0x80  # inspect.CO_COROUTINE


class Code(NamedTuple):
    """What a function's folder offers; one of the two is there.

    Attributes:
        alike: whether both give the same answer to one request, so that one that comes alone needs no batch.
    """

    handler: Callable[..., Any] | None
    batch_handler: Callable[..., Any] | None
    alike: bool = False

    @property
    def is_async(self) -> bool:
        """Whether the handler is a coroutine function."""
        return self.handler is not None and _is_async(self.handler)


def load(function: str, folder: str, name: str = "handler") -> Code:
    """Imports ``folder/__init__.py`` and finds its handlers.

    The folder is put first on `sys.path`, so that modules beside it import by their own names.

    Args:
        function: the function's Id.
        folder: absolute.
        name: the handler's name.

    Raises:
        StartError: FUNCTION_NOT_FOUND, FUNCTION_IMPORT_FAILED, HANDLER_INVALID.
    """
    file = os.path.join(folder, "__init__.py")
    if not os.path.isfile(file):
        raise StartError("FUNCTION_NOT_FOUND", f"The function {function} has no __init__.py in its folder {folder}.")
    module = _import(function, folder, file)
    code = Code(_callable(module, name), _callable(module, "batch_handler"))
    if code.handler is None and code.batch_handler is None:
        raise StartError("FUNCTION_NOT_FOUND", f"The function {function} defines no {name}(event, context) in {file}.")
    if code.batch_handler is not None and (code.is_async or _is_async(code.batch_handler)):
        raise StartError(
            "HANDLER_INVALID",
            f"The function {function} has a batch_handler and is asynchronous: a batch_handler is a plain "
            "function, and stands beside a plain handler or alone.",
        )
    return code


def _import(function: str, folder: str, file: str) -> ModuleType:
    name = "marram_function_" + "".join(c if c.isalnum() else "_" for c in function)
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[folder])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True  # the folder is an object of the store: nothing may be added to it
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # a top level may well call sys.exit
        raise StartError(
            "FUNCTION_IMPORT_FAILED", f"The function {function} cannot be imported: {told(error, folder)}"
        ) from error
    return module


def _callable(module: ModuleType, name: str) -> Callable[..., Any] | None:
    found = getattr(module, name, None)
    return found if callable(found) else None


def _is_async(function: Any) -> bool:
    """Whether calling it gives a coroutine. The module inspect would cost a worker 10 ms of its start."""
    while inner := getattr(function, "func", None) or getattr(function, "__wrapped__", None):
        function = inner
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return code is not None and bool(code.co_flags & _CO_COROUTINE)


def told(error: BaseException, folder: str | None) -> str:
    """``TypeName: text (file:line)``: the line in the function's own code, where there is one, else the innermost."""
    text = _text(error)
    if isinstance(error, SyntaxError) and error.filename:
        text, place = error.msg, (error.filename, error.lineno)
    else:
        place = _place(error, folder)
    name = type(error).__name__ + (f": {text[:1000]}" if text else "")
    return f"{name} ({_short(place[0], folder)}:{place[1]})" if place else name


def _text(error: BaseException) -> str:
    try:
        return str(error).strip()
    except Exception:  # a function's own exception class may raise in its __str__
        return ""


def _place(error: BaseException, folder: str | None) -> Any:
    # Pairs of file and line, outermost first; the sources are not read.
    calls: list[tuple[str, int]] = []
    at = error.__traceback__
    while at is not None:
        calls.append((at.tb_frame.f_code.co_filename, at.tb_lineno))
        at = at.tb_next
    own = [call for call in calls if folder and call[0].startswith(folder + os.sep)]
    return own[-1] if own else calls[-1] if calls else None


def _short(file: str, folder: str | None) -> str:
    return os.path.relpath(file, folder) if folder and file.startswith(folder + os.sep) else file
