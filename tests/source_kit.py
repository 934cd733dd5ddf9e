"""The project's own sources as syntax trees, for tests that hold a rule over all of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent


@cache
def sources() -> dict[str, ast.Module]:
    """Every module of `agent` and `functions` by its dotted name."""
    found: dict[str, ast.Module] = {}
    for package in ("agent", "functions"):
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = list(file.relative_to(ROOT).with_suffix("").parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(file.read_text(encoding="utf-8"), str(file))
    return found


def imported(module: str) -> Iterator[tuple[str, int, bool]]:
    """What a module imports: (dotted name, line, whether it happens when the module is imported).

    ``from a.b import c`` counts as ``a.b.c`` where that is a module of ours and as ``a.b`` otherwise. What stands below
    ``if TYPE_CHECKING:`` is not imported at all.
    """
    yield from _imports(module, sources()[module], top=True)


def _imports(module: str, node: ast.AST, *, top: bool) -> Iterator[tuple[str, int, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno, top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, f"{module}:{child.lineno}: relative imports hide what is imported"
            for alias in child.names:
                below = f"{child.module}.{alias.name}"
                yield (below if below in sources() else str(child.module)), child.lineno, top
        elif not _only_for_types(child):
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(module, child, top=top and not inside)


def _only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
