"""Filters by their levels, so that those that overlap one are found without looking at all. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class _Node:
    __slots__ = ("children", "filter")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.filter: str | None = None  # that ends here


class FilterTree:
    """A set of topic filters."""

    def __init__(self) -> None:
        self._root = _Node()

    def add(self, subject: str) -> None:
        """Puts a filter in; once is enough."""
        node = self._root
        for level in subject.split("/"):
            node = node.children.setdefault(level, _Node())
        node.filter = subject

    def remove(self, subject: str) -> None:
        """Takes a filter out again.

        Raises:
            KeyError: it is not in.
        """
        path = [self._root]
        levels = subject.split("/")
        for level in levels:
            path.append(path[-1].children[level])
        path[-1].filter = None
        for node, level in zip(path[-2::-1], reversed(levels), strict=True):
            child = node.children[level]
            if child.filter is None and not child.children:
                del node.children[level]

    def overlapping(self, subject: str) -> Iterator[str]:
        """The filters in it that some topic name matches together with `subject`."""
        levels = subject.split("/")
        waiting = [(self._root, 0)]
        while waiting:
            node, at = waiting.pop()
            level = levels[at] if at < len(levels) else None
            if level == "#":
                yield from _all_below(node, None if at else levels[0])
                continue
            if level is None and node.filter is not None:
                yield node.filter
            for name in _names(node, level):
                child = node.children.get(name)
                if child is None or (at == 0 and _dollar_apart(name, levels[0])):
                    continue
                if name == "#":
                    yield from _all_below(child, None)
                else:
                    waiting.append((child, at + 1))


def _names(node: _Node, level: str | None) -> Iterable[str]:
    """The children of a node that go together with a level; None: the filter has ended."""
    if level is None:
        return ("#",)
    return tuple(node.children) if level == "+" else (level, "+", "#")


def _all_below(node: _Node, first: str | None) -> Iterator[str]:
    """Every filter that begins with the node; at the top those that go together with the `first` level."""
    waiting = [child for name, child in node.children.items() if first is None or not _dollar_apart(name, first)]
    if node.filter is not None:
        yield node.filter
    while waiting:
        each = waiting.pop()
        if each.filter is not None:
            yield each.filter
        waiting.extend(each.children.values())


def _dollar_apart(a: str, b: str) -> bool:
    """Whether one first level is a wildcard and the other begins with ``$``: these never meet (MQTT 5, 4.7.2)."""
    return (a[:1] == "$" and b in ("+", "#")) or (b[:1] == "$" and a in ("+", "#"))
