"""docs/errors.md and the codes in the source are the same set, and each code has a meaning and a remedy there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.source_kit import ROOT, sources

CODE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
PAGE = ROOT / "docs" / "errors.md"
ROW = re.compile(r"^\| `([A-Z][A-Z0-9_]*)` \|(.*)\|(.*)\|$", re.MULTILINE)
# Never leave the agent, by construction; each with why.
UNSEEN: dict[str, str] = {}


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
        for given in _places(node, classes):
            value = given.value if isinstance(given, ast.Constant) else constants.get(_name(given))
            text = value.decode() if isinstance(value, bytes) else value
            if isinstance(text, str) and CODE.fullmatch(text):
                yield text


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
