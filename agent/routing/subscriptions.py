"""Which targets a message goes to: (source, subject) to targets, matched by a trie. Pure.

Each target appears once for one message, however many of its filters match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from agent.settings import Subscription
from agent.values import dataclass

LINKS = ("local", "cloud")
FUNCTION = "function:"
SHADOWS = "GGShadowService"  # V1's name for the core's own store of shadows
CACHED_ROUTES = 32_768  # topics seen lately, of messages and of results; with more than that, each pays the trie's walk


@lru_cache(maxsize=1024)
def function_of(target: str) -> str | None:
    """The function's Id of a target or source ``function:ID``; None for a link."""
    return target[len(FUNCTION) :] if target.startswith(FUNCTION) else None


@dataclass(frozen=True, slots=True)
class Way:
    """Where a message goes.

    Attributes:
        targets: all of them, distinct, in the order of the subscriptions.
        functions: the Ids of the functions among them.
        others: the links and the shadows among them.
        only: the function where it is the only target.
    """

    targets: tuple[str, ...]
    functions: tuple[str, ...]
    others: tuple[str, ...]
    only: str | None


def way_to(targets: tuple[str, ...]) -> Way:
    """The targets, sorted by what they are."""
    functions = tuple(target[len(FUNCTION) :] for target in targets if target.startswith(FUNCTION))
    others = tuple(target for target in targets if not target.startswith(FUNCTION))
    return Way(targets, functions, others, functions[0] if len(targets) == 1 and functions else None)


class _Node:
    __slots__ = ("below", "children", "targets")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.targets: list[str] = []
        self.below: list[str] = []  # targets of a filter that ends here with '#'


class _Ways(dict[tuple[str, str], Way]):
    """The ways of (source, topic), each found when it is asked for first, and kept."""

    def __init__(self, find: Callable[[str, str], tuple[str, ...]]) -> None:
        self._find = find

    def __missing__(self, key: tuple[str, str]) -> Way:
        if len(self) >= CACHED_ROUTES:
            self.clear()
        self[key] = way = way_to(self._find(*key))
        return way


class Subscriptions:
    """An immutable routing table.

    Args:
        subscriptions: with sources and targets ``local``, ``cloud`` or ``function:ID``.

    Attributes:
        ways: where a message goes, by its source and topic; nowhere where nobody asked for it.
    """

    def __init__(self, subscriptions: Iterable[Subscription]) -> None:
        self.all: tuple[Subscription, ...] = tuple(subscriptions)
        self._roots: dict[str, _Node] = {}
        for each in self.all:
            _insert(self._roots.setdefault(each.source, _Node()), each.subject, each.target)
        # What is known already is found without a call in Python.
        self.ways: Mapping[tuple[str, str], Way] = _Ways(self._find)

    def route(self, source: str, topic: str) -> tuple[str, ...]:
        """Distinct targets of a message of `source` on `topic`; empty where nobody asked for it."""
        return self.ways[source, topic].targets

    def _find(self, source: str, topic: str) -> tuple[str, ...]:
        root = self._roots.get(source)
        if root is None:
            return ()
        found: dict[str, None] = {}
        _collect(root, topic.split("/"), 0, found, wildcards=not topic.startswith("$"))
        return tuple(found)

    def subjects(self, source: str) -> frozenset[str]:
        """The filters that anything of `source` is wanted for."""
        return frozenset(s.subject for s in self.all if s.source == source)


def _insert(node: _Node, subject: str, target: str) -> None:
    for level in subject.split("/"):
        if level == "#":
            node.below.append(target)
            return
        node = node.children.setdefault(level, _Node())
    node.targets.append(target)


def _collect(node: _Node, levels: list[str], at: int, found: dict[str, None], *, wildcards: bool) -> None:
    if wildcards:
        found.update(dict.fromkeys(node.below))
    if at == len(levels):
        found.update(dict.fromkeys(node.targets))
        return
    for name in (levels[at], "+") if wildcards else (levels[at],):
        child = node.children.get(name)
        if child is not None:
            _collect(child, levels, at + 1, found, wildcards=True)
