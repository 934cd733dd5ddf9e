"""`agent.values.dataclass` beside the standard library's: what is built, compared, shown and refused is the same."""

from __future__ import annotations

import ast
import copy
import dataclasses
import importlib
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from agent import values
from tests.source_kit import imported, sources

Decorator = Callable[..., Any]
OURS: Any = values.dataclass
ARGUMENTS: list[dict[str, bool]] = [
    {"frozen": True, "slots": True},
    {"frozen": True, "slots": True, "eq": False},
    {"frozen": True},
    {"slots": True},
    {"slots": True, "eq": False},
    {},
]


def made(decorator: Decorator, **arguments: bool) -> Any:
    class Point:
        """A point."""

        x: int
        y: Any = 2
        secret: str = dataclasses.field(default="s", repr=False)
        seen: list[int] = dataclasses.field(default_factory=list, compare=False)

        def sum(self) -> int:
            return self.x + int(self.y)

    return decorator(**arguments)(Point)


def outcome(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except Exception as error:
        return type(error)


def by_identity(made: Any) -> bool:
    return made.__hash__ is object.__hash__


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize(
    "act",
    [
        lambda c: repr(c(1)),
        lambda c: c(1).seen,
        lambda c: c(1).sum(),
        lambda c: c(1, y=3, seen=[4]).seen,
        lambda c: c(1) == c(1, seen=[1]),
        lambda c: c(1) == c(1, 3),
        lambda c: c(1) == 1,
        lambda c: by_identity(c) or hash(c(1)) == hash(c(1, seen=[1])),
        lambda c: by_identity(c) or hash(c(1, [])),
        lambda c: c(),
        lambda c: c(1, z=2),
        lambda c: c(1, 2, "s", [], 5),
        lambda c: setattr(c(1), "x", 2),
        lambda c: isinstance(outcome(lambda: setattr(c(1), "new", 2)), type),  # TypeError until Python 3.12
        lambda c: delattr(c(1), "x"),
        lambda c: repr(dataclasses.replace(c(1), y=5)),
        lambda c: dataclasses.asdict(c(1)),
        lambda c: [f.name for f in dataclasses.fields(c)],
        lambda c: repr(copy.copy(c(1, 5))),
        lambda c: repr(copy.deepcopy(c(1, 5))),
        lambda c: c.__match_args__,
        lambda c: (c(1), list(inspect.signature(c).parameters))[1],
        lambda c: (c(1), [p.default is p.empty for p in inspect.signature(c).parameters.values()])[1],
        lambda c: (c.__doc__, c.__name__, c.__qualname__),
        lambda c: hasattr(c(1), "__dict__"),
    ],
)
def test_it_does_what_the_standard_librarys_does(arguments: dict[str, bool], act: Callable[[Any], Any]) -> None:
    ours, theirs = made(OURS, **arguments), made(dataclasses.dataclass, **arguments)
    assert outcome(lambda: act(ours)) == outcome(lambda: act(theirs))


def test_what_refers_to_itself_can_be_shown() -> None:
    one = made(OURS, slots=True)(1)
    one.y = one
    assert repr(one).endswith("(x=1, y=..., seen=[])")


def test_methods_of_the_class_itself_stay() -> None:
    class Hidden:
        """With a face of its own."""

        x: int

        def __repr__(self) -> str:
            return "hidden"

        def __eq__(self, other: object) -> bool:
            return True

    found = OURS(frozen=True, slots=True)(Hidden)
    assert repr(found(1)) == "hidden"
    assert found(1) == found(2)


@OURS(frozen=True, slots=True)
class Kept:
    """At the top of a module, where pickle finds it."""

    x: int


def test_a_frozen_value_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(Kept(1))) == Kept(1)


def test_the_agents_classes_are_made_here() -> None:
    """Each of the other kind takes half a millisecond of a start."""
    wrong = [
        f"{module}:{node.lineno}"
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "dataclasses" and module != "agent.values"
        if any(alias.name == "dataclass" for alias in node.names)
    ]
    assert not wrong, wrong


def classes() -> list[type]:
    found = {}
    for module in sources():
        if module.startswith("agent") and any(name.startswith("agent.values") for name, _, _ in imported(module)):
            for each in vars(importlib.import_module(module)).values():
                if inspect.isclass(each) and dataclasses.is_dataclass(each) and each.__module__.startswith("agent."):
                    found[each] = None
    return list(found)


def test_no_class_asks_for_what_is_not_offered() -> None:
    for each in classes():
        assert each.__bases__ == (object,), each
        assert not hasattr(each, "__post_init__"), each
        assert all(field.init and not field.kw_only for field in dataclasses.fields(each)), each
