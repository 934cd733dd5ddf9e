"""docs/errors.md and the codes in the source are the same set, and each code has a meaning and a remedy there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.source_kit import ROOT, sources

CODE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
PAGE = ROOT / "docs" / "errors.md"
# Classes whose first argument is the code; those derived further have one of their own.
CODED = {"AgentError", "ConfigError", "RejectedError", "TransientError", "IntegrityError", "FunctionError",
         "CodedError", "StartError", "RequestError"}  # fmt: skip
ROW = re.compile(r"^\| `([A-Z][A-Z0-9_]*)` \|(.*)\|(.*)\|$", re.MULTILINE)
LOGGERS = ("log", "logger")
LOGGED = re.compile(r"\b([A-Z]+(?:_[A-Z]+)+): ")


def _constants() -> dict[str, str]:
    """Module constants that are texts like a code: ``BAD: Final = "BAD_DOCUMENT"``."""
    found: dict[str, str] = {}
    for tree in sources().values():
        for node in tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(target, ast.Name):
                value = node.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str) and CODE.fullmatch(value.value):
                    found[target.id] = value.value
    return found


def _error_classes() -> set[str]:
    """AgentError, CodedError and all that are derived from them, by name."""
    classes = {"AgentError", "CodedError"}
    while True:
        more = {
            node.name
            for tree in sources().values()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and any(_name(base) in classes for base in node.bases)
        }
        if more <= classes:
            return classes
        classes |= more


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _codes(tree: ast.Module, classes: set[str], constants: dict[str, str]) -> Iterator[str]:
    for node in ast.walk(tree):
        yield from _logged(node)
        for given in _places(node, classes):
            value = given.value if isinstance(given, ast.Constant) else constants.get(_name(given))
            text = value.decode() if isinstance(value, bytes) else value
            if isinstance(text, str) and CODE.fullmatch(text):
                yield text


def _logged(node: ast.AST) -> Iterator[str]:
    """Codes that are only ever told in the log: ``log.error("link %s: MESSAGE_REFUSED: ..")``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _name(node.func.value) in LOGGERS:
        text = node.args[0] if node.args else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            yield from LOGGED.findall(text.value)


def _places(node: ast.AST, classes: set[str]) -> Iterator[ast.expr]:
    """The expressions of `node` that are codes where they are constants."""
    if isinstance(node, ast.Call):
        called = _name(node.func)
        if called in classes or called in ("__init__", "note"):
            yield from node.args[:2]
        elif called == "bad":
            yield from node.args[2:3]
    elif isinstance(node, ast.Dict):
        yield from (v for k, v in zip(node.keys, node.values, strict=True) if _is(k, "code"))
    elif isinstance(node, ast.Assign):
        yield from _assigned(node.targets[0], node.value)
    elif isinstance(node, ast.arguments):
        named = [*node.posonlyargs, *node.args]
        defaults = dict(zip([a.arg for a in named][len(named) - len(node.defaults) :], node.defaults, strict=True))
        if "code" in defaults:
            yield defaults["code"]


def _assigned(target: ast.expr, value: ast.expr) -> Iterator[ast.expr]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for each, given in zip(target.elts, value.elts, strict=True):
            yield from _assigned(each, given)
    elif _name(target) == "code":
        yield value


def _is(node: ast.expr | None, text: str) -> bool:
    return isinstance(node, ast.Constant) and node.value == text


def codes_in_source() -> dict[str, set[str]]:
    """Every code with the modules that give it."""
    classes, constants = _error_classes(), _constants()
    found: dict[str, set[str]] = {}
    for module, tree in sources().items():
        for code in _codes(tree, classes, constants):
            found.setdefault(code, set()).add(module)
    return found


def rows_of_page() -> list[tuple[str, str, str]]:
    return [(code, meaning.strip(), remedy.strip()) for code, meaning, remedy in ROW.findall(PAGE.read_text("utf-8"))]


def test_every_code_of_the_source_is_on_the_page() -> None:
    page = {code for code, _, _ in rows_of_page()}
    missing = {code: sorted(where) for code, where in codes_in_source().items() if code not in page}
    assert not missing, f"docs/errors.md lacks {missing}"


def test_every_code_of_the_page_is_in_the_source() -> None:
    assert {code for code, _, _ in rows_of_page()} - set(codes_in_source()) == set()


def test_each_code_stands_once_with_a_meaning_and_a_remedy() -> None:
    rows = rows_of_page()
    assert len({code for code, _, _ in rows}) == len(rows), sorted(code for code, _, _ in rows)
    assert [code for code, meaning, remedy in rows if not meaning or not remedy] == []


def test_a_code_stands_in_the_source_in_so_many_words() -> None:
    """What the other tests cannot see: a code made up at run time. One that came from elsewhere may be passed on."""
    constants = _constants()
    unnamed = [
        f"{module}:{node.lineno}"
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _name(node.func) in CODED and not _is_named(node.args[0], constants)
    ]
    assert unnamed == []


def _is_named(given: ast.expr, constants: dict[str, str]) -> bool:
    if isinstance(given, (ast.Constant, ast.Subscript)):
        return True
    return _name(given) in constants or _name(given) == "code"
