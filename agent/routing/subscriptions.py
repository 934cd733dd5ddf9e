"""Which targets a message goes to: (source, subject) to targets, matched by a trie. Pure.

Each target appears once for one message, however many of its filters match.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from agent.routing.topics import overlaps
from agent.settings import Subscription

LINKS = ("local", "cloud")
FUNCTION = "function:"
SHADOWS = "GGShadowService"  # V1's name for the core's own store of shadows
CACHED_ROUTES = 8192  # topics seen lately; a core with more topics than that pays the trie's walk


@lru_cache(maxsize=1024)
def function_of(target: str) -> str | None:
    """The function's Id of a target or source ``function:ID``; None for a link."""
    return target[len(FUNCTION) :] if target.startswith(FUNCTION) else None


class _Node:
    __slots__ = ("below", "children", "targets")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.targets: list[str] = []
        self.below: list[str] = []  # targets of a filter that ends here with '#'


class Subscriptions:
    """An immutable routing table.

    Args:
        subscriptions: with sources and targets ``local``, ``cloud`` or ``function:ID``.
    """

    def __init__(self, subscriptions: Iterable[Subscription]) -> None:
        self.all: tuple[Subscription, ...] = tuple(subscriptions)
        self._roots: dict[str, _Node] = {}
        self._cache: dict[tuple[str, str], tuple[str, ...]] = {}
        for each in self.all:
            _insert(self._roots.setdefault(each.source, _Node()), each.subject, each.target)

    def route(self, source: str, topic: str) -> tuple[str, ...]:
        """Distinct targets of a message of `source` on `topic`; empty where nobody asked for it."""
        key = (source, topic)
        targets = self._cache.get(key)
        if targets is None:
            targets = self._find(source, topic)
            if len(self._cache) >= CACHED_ROUTES:
                self._cache.clear()
            self._cache[key] = targets
        return targets

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


def find_cycle(
    subscriptions: Iterable[Subscription], *, through: Iterable[str] = LINKS, one_link: bool = False
) -> list[Subscription] | None:
    """A round of subscriptions on which a message could go for ever, or None.

    Args:
        subscriptions: of the settings and the group together.
        through: the links whose broker gives us back what we publish (MQTT 3.1.1 has no noLocal); a round that passes
            none of them is no cycle.
        one_link: both links lead to one broker, so that what one publishes the other receives.

    Returns:
        The subscriptions in order; the last one leads back to the first.
    """
    every = tuple(subscriptions)
    through = frozenset(through)
    for first in every:
        if first.target in through:
            path = _path_back(first, every, one_link=one_link)
            if path:
                return path
    return None


def _path_back(first: Subscription, every: Sequence[Subscription], *, one_link: bool) -> list[Subscription] | None:
    came_from: dict[Subscription, Subscription | None] = {first: None}
    waiting = [first]
    while waiting:
        here = waiting.pop()
        for following in every:
            if not _feeds(here, following, one_link=one_link):
                continue
            if following is first:
                return _trace(here, came_from)
            if following not in came_from:
                came_from[following] = here
                waiting.append(following)
    return None


def _trace(last: Subscription, came_from: dict[Subscription, Subscription | None]) -> list[Subscription]:
    path: list[Subscription] = []
    step: Subscription | None = last
    while step is not None:
        path.append(step)
        step = came_from[step]
    return path[::-1]


def _feeds(a: Subscription, b: Subscription, *, one_link: bool) -> bool:
    if a.target.startswith(FUNCTION):
        return a.target == b.source  # a function may publish on any topic
    return _same_link(a.target, b.source, one_link=one_link) and overlaps(a.subject, b.subject)


def _same_link(target: str, source: str, *, one_link: bool) -> bool:
    return target == source or (one_link and target in LINKS and source in LINKS)
