"""Rules on an event and its result: ``event.temperature > 80 and output.best == "run"``. Pure.

The language is a small part of Python's expressions, read by Python's own parser and run by none of it: what stands
for a rule is a tree of our functions. A rule that parses can neither fail nor do anything but say yes or no; a field
that is not there, or of another type than what it is compared with, makes its comparison false.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Final

from agent.values import dataclass

MAX_CHARACTERS: Final = 1000
MAX_PARTS: Final = 100
NAMES: Final = ("event", "output", "topic", "best", "confidence", "margin", "entropy")
WORDS: Final = {"true": True, "false": False, "null": None}
FUNCTIONS: Final = ("len", "abs", "exists")


class Missing:
    """What stands for a field that is not there."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False


MISSING: Final = Missing()


class RuleError(ValueError):
    """Why a text is no rule, and at which column."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: its text, and what it looks at (of `NAMES`)."""

    text: str
    names: frozenset[str]
    _holds: Callable[[Callable[[str], Any]], Any] = field(repr=False, compare=False)

    def holds(self, look: Callable[[str], Any]) -> bool:
        """Whether it holds, where `look` gives what a name of `NAMES` stands for, or None."""
        return bool(self._holds(look))


def parse(text: str) -> Rule:
    """The rule that a text is.

    Raises:
        RuleError: it is none.
    """
    if len(text) > MAX_CHARACTERS:
        raise RuleError(f"has {len(text)} characters; at most {MAX_CHARACTERS} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's parser, about what we refuse anyhow
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        at = getattr(error, "offset", None) or len(text) + 1
        raise RuleError(f"cannot be read (column {at}); write for example: event.temperature > 80") from None
    parts = list(ast.walk(tree))
    if len(parts) > MAX_PARTS * 3:  # a name or a comparison is some three nodes
        raise RuleError(f"is too long; some {MAX_PARTS} names, numbers and comparisons are allowed")
    compiled = _compiled(tree)
    names = frozenset(each.id for each in parts if isinstance(each, ast.Name) and each.id in NAMES)
    if not names:
        raise RuleError(f"looks at nothing of the request; it may name {', '.join(NAMES)}")
    return Rule(text, names, compiled)


def _bad(node: ast.AST, text: str) -> RuleError:
    return RuleError(f"column {getattr(node, 'col_offset', 0) + 1}: {text}")


def _compiled(node: ast.AST) -> Callable[[Any], Any]:
    made = _KINDS.get(type(node))
    if made is None:
        raise _bad(node, f"{type(node).__name__} has no place in a rule; it takes fields, comparisons, and, or, not")
    return made(node)


def _name(node: ast.Name) -> Callable[[Any], Any]:
    name = node.id
    if name in WORDS:
        value = WORDS[name]
        return lambda look: value
    if name not in NAMES:
        hint = " (a text is written in quotes)" if name not in FUNCTIONS else ""
        raise _bad(node, f"{name!r} is not known; known are {', '.join(NAMES)}{hint}")
    return lambda look: _there(look(name))


def _there(value: Any) -> Any:
    return MISSING if value is None else value


def _attribute(node: ast.Attribute) -> Callable[[Any], Any]:
    return _member(_compiled(node.value), node.attr)


def _subscript(node: ast.Subscript) -> Callable[[Any], Any]:
    key = node.slice
    value: Any = key.value if isinstance(key, ast.Constant) else None
    if isinstance(key, ast.UnaryOp) and isinstance(key.op, ast.USub) and isinstance(key.operand, ast.Constant):
        number = key.operand.value
        value = -number if isinstance(number, int) else None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _bad(node, "what stands in [] must be a text in quotes or a whole number")
    return _member(_compiled(node.value), value)


def _member(inner: Callable[[Any], Any], key: Any) -> Callable[[Any], Any]:
    holder = dict if isinstance(key, str) else list

    def run(look: Any) -> Any:
        value: Any = inner(look)
        try:
            return value[key] if isinstance(value, holder) else MISSING
        except (KeyError, IndexError):
            return MISSING

    return run


def _constant(node: ast.Constant) -> Callable[[Any], Any]:
    value = node.value
    if not isinstance(value, (str, int, float, bool, type(None))):
        raise _bad(node, f"{value!r} is neither a number nor a text")
    return lambda look: value


def _list(node: ast.List | ast.Tuple) -> Callable[[Any], Any]:
    parts = [_compiled(each) for each in node.elts]
    return lambda look: [part(look) for part in parts]


def _both(node: ast.BoolOp) -> Callable[[Any], Any]:
    parts = [_compiled(each) for each in node.values]
    if isinstance(node.op, ast.And):
        return lambda look: all(part(look) for part in parts)
    return lambda look: any(part(look) for part in parts)


def _unary(node: ast.UnaryOp) -> Callable[[Any], Any]:
    inner = _compiled(node.operand)
    if isinstance(node.op, ast.Not):
        return lambda look: not inner(look)
    if isinstance(node.op, ast.USub):
        return lambda look: _calculated(operator.sub, 0, inner(look))
    raise _bad(node, "only - and not may stand before a value")


def _sum(node: ast.BinOp) -> Callable[[Any], Any]:
    how = _ARITHMETIC.get(type(node.op))
    if how is None:
        raise _bad(node, "of arithmetic there is + - * / and no more")
    left, right = _compiled(node.left), _compiled(node.right)
    return lambda look: _calculated(how, left(look), right(look))


def _calculated(how: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    if not (_is_number(left) and _is_number(right)):  # a text times a number would be a text of any length
        return MISSING
    try:
        return how(left, right)
    except ArithmeticError:
        return MISSING


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _compare(node: ast.Compare) -> Callable[[Any], Any]:
    parts = [_compiled(each) for each in (node.left, *node.comparators)]
    for each in node.ops:
        if type(each) not in _COMPARISONS:
            raise _bad(node, "values are compared with == != < <= > >= in, not in")
    ways = [_COMPARISONS[type(each)] for each in node.ops]

    def run(look: Any) -> bool:
        values = [part(look) for part in parts]
        return all(_compared(how, *values[i : i + 2]) for i, how in enumerate(ways))

    return run


def _compared(how: Callable[[Any, Any], bool], left: Any, right: Any) -> bool:
    if left is MISSING or right is MISSING:
        return False
    try:
        return bool(how(left, right))
    except TypeError:
        return False


def _call(node: ast.Call) -> Callable[[Any], Any]:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name not in FUNCTIONS or len(node.args) != 1 or node.keywords:
        raise _bad(node, f"the only functions are {', '.join(f'{each}(..)' for each in FUNCTIONS)} of one value")
    inner = _compiled(node.args[0])
    if name == "exists":
        return lambda look: inner(look) is not MISSING
    if name == "abs":
        return lambda look: abs(value) if _is_number(value := inner(look)) else MISSING
    return lambda look: len(value) if isinstance(value := inner(look), (str, bytes, list, dict)) else MISSING


_ARITHMETIC: Final[Mapping[type, Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_COMPARISONS: Final[Mapping[type, Callable[[Any, Any], bool]]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip
_KINDS: Final[Mapping[type, Callable[[Any], Callable[[Any], Any]]]] = {
    ast.Name: _name, ast.Attribute: _attribute, ast.Subscript: _subscript, ast.Constant: _constant, ast.List: _list,
    ast.Tuple: _list, ast.BoolOp: _both, ast.UnaryOp: _unary, ast.BinOp: _sum, ast.Compare: _compare, ast.Call: _call,
}  # fmt: skip
