"""Where a folder's V1 Lambda code begins, told from its text: it is not imported, as its top level may never return."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from functions.errors import StartError

if TYPE_CHECKING:
    import ast

NATIVE: Final = ("handler", "batch_handler")
USUAL: Final = ("function_handler", "lambda_handler")
SDK: Final = "greengrasssdk"
SIGNS: Final = tuple(each.encode() for each in (*USUAL, SDK))


class Entry(NamedTuple):
    """V1 Lambda code.

    Attributes:
        file: absolute.
        module: the name that it is imported by; None: the folder's own ``__init__.py``.
        handler: the function's name in it.
    """

    file: str
    module: str | None
    handler: str


def find(function: str, folder: str, executable: str | None) -> Entry | None:
    """The entry of V1 code; None for a function of this project's own kind.

    V1 code is what is named as Lambda does (``module.function``), what has a ``function_handler`` or
    ``lambda_handler`` and no ``handler``, and what imports `greengrasssdk`.

    Args:
        function: the function's Id.
        folder: absolute.
        executable: Executable as the deployment has it.

    Raises:
        StartError: FUNCTION_NOT_FOUND.
    """
    if executable and "." in executable:
        return _named(function, folder, executable)
    own = os.path.join(folder, "__init__.py")
    if os.path.isfile(own):
        if not _has_signs(own):
            return None
        names, imports_sdk = _read(own)
        wanted = (executable,) if executable else (*USUAL, "handler")
        found = next((name for name in wanted if name in names), None)
        if found and (imports_sdk or (found in USUAL and not names.intersection(NATIVE))):
            return Entry(own, None, found)
        return None
    return _only_one(function, folder, (executable,) if executable else USUAL)


def _named(function: str, folder: str, executable: str) -> Entry:
    module, _, handler = executable.rpartition(".")
    place = os.path.join(folder, *module.split("."))
    for file in (f"{place}.py", os.path.join(place, "__init__.py")):
        if os.path.isfile(file):
            return Entry(file, module, handler)
    text = f"The function {function} names the handler {executable}, but its folder has no {module}.py: {folder}."
    raise StartError("FUNCTION_NOT_FOUND", text)


def _only_one(function: str, folder: str, wanted: tuple[str, ...]) -> Entry | None:
    found = list(_candidates(folder, wanted))
    if len(found) > 1:
        named = ", ".join(f"{entry.module}.{entry.handler}" for entry in found)
        text = f"The function {function} has several handlers in {folder}: {named}. Name one of them as its Executable."
        raise StartError("FUNCTION_NOT_FOUND", text)
    return found[0] if found else None


def _candidates(folder: str, wanted: tuple[str, ...]) -> Iterator[Entry]:
    for name in sorted(os.listdir(folder)):
        if name.endswith(".py"):
            file = os.path.join(folder, name)
            names, _ = _read(file)
            handler = next((each for each in wanted if each in names), None)
            if handler:
                yield Entry(file, name[:-3], handler)


def _has_signs(file: str) -> bool:
    """Whether a file may hold V1 code at all; to read it properly costs milliseconds of a start."""
    try:
        with open(file, "rb") as stream:
            text = stream.read()
    except OSError:
        return False
    return any(sign in text for sign in SIGNS)


def _read(file: str) -> tuple[set[str], bool]:
    """The names that a file's top level defines, and whether it imports V1's SDK; nothing of a file that is broken."""
    import ast

    try:
        with open(file, "rb") as stream:
            tree = ast.parse(stream.read(), file)
    except (OSError, SyntaxError, ValueError):
        return set(), False  # the import says what is wrong
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(each.id for each in node.targets if isinstance(each, ast.Name))
        elif isinstance(node, ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
    return names, any(_imports_sdk(node) for node in ast.walk(tree))


def _imports_sdk(node: ast.AST) -> bool:
    import ast

    if isinstance(node, ast.Import):
        return any(alias.name.partition(".")[0] == SDK for alias in node.names)
    return isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == SDK
