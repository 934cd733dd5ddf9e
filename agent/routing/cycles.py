"""Rounds of subscriptions on which a message could go for ever. Pure.

MQTT 5's noLocal ends such a round at the broker; MQTT 3.1.1 has nothing like it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field

from agent.routing.filter_tree import FilterTree
from agent.routing.subscriptions import FUNCTION, LINKS
from agent.settings import Subscription
from agent.values import dataclass


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
    ways = _Ways(tuple(subscriptions), one_link)
    through = frozenset(through)
    round_of = _rounds(ways)
    for first, subscription in enumerate(ways.every):
        if subscription.target in through and any(round_of[n] == round_of[first] for n in ways.after(first)):
            return [ways.every[n] for n in _way_round(first, ways, round_of)]
    return None


class _Ways:
    """Which subscription feeds which, by their places in `every`."""

    def __init__(self, every: Sequence[Subscription], one_link: bool) -> None:
        self.every = every
        self._one_link = one_link
        self._by_source: dict[str, _Source] = {}
        self._known: dict[tuple[str, str], tuple[int, ...]] = {}
        for n, each in enumerate(every):
            self._by_source.setdefault(self._end(each.source), _Source()).add(each.subject, n)

    def _end(self, name: str) -> str:
        return LINKS[0] if self._one_link and name in LINKS else name

    def after(self, n: int) -> tuple[int, ...]:
        """The subscriptions that what `n` carries may go on by."""
        here = self.every[n]
        is_function = here.target.startswith(FUNCTION)
        key = (self._end(here.target), "" if is_function else here.subject)
        found = self._known.get(key)
        if found is None:
            source = self._by_source.get(key[0])
            # A function may publish on any topic.
            found = () if source is None else source.all() if is_function else tuple(source.overlapping(here.subject))
            self._known[key] = found
        return found


@dataclass(slots=True)
class _Source:
    tree: FilterTree = field(default_factory=FilterTree)
    places: dict[str, list[int]] = field(default_factory=dict)

    def add(self, subject: str, n: int) -> None:
        self.tree.add(subject)
        self.places.setdefault(subject, []).append(n)

    def all(self) -> tuple[int, ...]:
        return tuple(n for places in self.places.values() for n in places)

    def overlapping(self, subject: str) -> Iterator[int]:
        for found in self.tree.overlapping(subject):
            yield from self.places[found]


def _rounds(ways: _Ways) -> list[int]:
    """For each subscription the number of its strongly connected component (Tarjan, without recursion)."""
    size = len(ways.every)
    index, low, component = [-1] * size, [0] * size, [-1] * size
    stack: list[int] = []
    count = 0
    for root in range(size):
        if index[root] != -1:
            continue
        path = [(root, iter(ways.after(root)))]
        index[root] = low[root] = count
        count += 1
        stack.append(root)
        while path:
            here, rest = path[-1]
            following = next(rest, None)
            if following is None:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[here])
                if low[here] == index[here]:
                    _close(here, stack, component)
            elif index[following] == -1:
                index[following] = low[following] = count
                count += 1
                stack.append(following)
                path.append((following, iter(ways.after(following))))
            elif component[following] == -1:
                low[here] = min(low[here], index[following])
    return component


def _close(root: int, stack: list[int], component: list[int]) -> None:
    while True:
        member = stack.pop()
        component[member] = root
        if member == root:
            return


def _way_round(first: int, ways: _Ways, round_of: Sequence[int]) -> list[int]:
    """The shortest way from `first` back to it within its component."""
    came_from = {first: first}
    waiting = [first]
    for here in waiting:
        for following in ways.after(here):
            if following == first:
                path = [here]
                while path[-1] != first:
                    path.append(came_from[path[-1]])
                return path[::-1]
            if round_of[following] == round_of[first] and following not in came_from:
                came_from[following] = here
                waiting.append(following)
    raise AssertionError("a component has a way back")
