"""Topic names and topic filters as MQTT 5, 4.7 has them. Pure; strings in, strings out.

A filter's level may be ``+`` (any one level) and its last ``#`` (the parent and everything below it). A filter that
starts with a wildcard never matches a topic that starts with ``$`` (4.7.2).
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.routing.filter_tree import FilterTree

MAX_BYTES = 65535  # MQTT 5, 1.5.4


def name_problem(topic: str) -> str | None:
    """Why `topic` is no topic name, or None if it is one."""
    if "+" in topic or "#" in topic:
        return f"the topic {topic!r} holds a wildcard"
    return _text_problem("topic", topic)


def filter_problem(subject: str) -> str | None:
    """Why `subject` is no topic filter, or None if it is one."""
    levels = subject.split("/")
    for i, level in enumerate(levels):
        if "#" in level and (level != "#" or i != len(levels) - 1):
            return f"in the filter {subject!r} '#' must stand alone and last"
        if "+" in level and level != "+":
            return f"in the filter {subject!r} '+' must fill a whole level"
    return _text_problem("filter", subject)


def _text_problem(what: str, text: str) -> str | None:
    if not text:
        return f"the {what} is empty"
    if "\0" in text:
        return f"the {what} {text!r} holds a null character"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return f"the {what} {text!r} is not valid Unicode"
    return f"the {what} has {size} bytes, MQTT allows {MAX_BYTES}" if size > MAX_BYTES else None


def matches(subject: str, topic: str) -> bool:
    """Whether the filter `subject` matches the topic name `topic`."""
    return overlaps(subject, topic)


def overlaps(a: str, b: str) -> bool:
    """Whether some topic name matches both filters."""
    if _dollar_apart(a, b):
        return False
    first, second = a.split("/"), b.split("/")
    for x, y in zip(first, second, strict=False):
        if x == "#" or y == "#":
            return True
        if x != y and x != "+" and y != "+":
            return False
    return _rest_is_free(first, second)


def _dollar_apart(a: str, b: str) -> bool:
    return (a[:1] == "$" and b[:1] in ("+", "#")) or (b[:1] == "$" and a[:1] in ("+", "#"))


def _rest_is_free(first: list[str], second: list[str]) -> bool:
    shorter, longer = sorted((first, second), key=len)
    rest = longer[len(shorter) :]
    return not rest or rest == ["#"]


def covers(a: str, b: str) -> bool:
    """Whether every topic name that matches `b` matches `a` too."""
    if _dollar_apart(a, b):
        return False
    wide, narrow = a.split("/"), b.split("/")
    for i, level in enumerate(wide):
        if level == "#":
            return True
        if i >= len(narrow) or narrow[i] == "#" or (level != "+" and level != narrow[i]):
            return False
    return len(wide) == len(narrow)


def join(a: str, b: str) -> str:
    """The narrowest filter that covers both of two overlapping filters."""
    joined: list[str] = []
    first, second = a.split("/"), b.split("/")
    for x, y in zip(first, second, strict=False):
        if x == "#" or y == "#":
            return "/".join([*joined, "#"])
        joined.append(x if x == y else "+")
    return "/".join(joined if len(first) == len(second) else [*joined, "#"])


def disjoint_cover(filters: Iterable[str]) -> frozenset[str]:
    """Filters of which no two overlap and which together match all that `filters` match.

    Brokers differ in how often they deliver a message that matches two filters of one client (MQTT 5, 3.3.4), so that
    none may: filters that overlap are replaced by the narrowest filter over both, which can let in more than was asked
    for; routing inside the agent leaves that out again.
    """
    cover: set[str] = set()
    tree = FilterTree()
    for new in sorted(set(filters)):
        while clash := next(tree.overlapping(new), None):
            cover.remove(clash)
            tree.remove(clash)
            new = join(clash, new)
        cover.add(new)
        tree.add(new)
    return frozenset(cover)
