"""Filters and routes, with paho's own matcher as the oracle."""

from __future__ import annotations

import itertools
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from agent.routing import topics
from agent.routing.cycles import find_cycle
from agent.routing.filter_tree import FilterTree
from agent.routing.subscriptions import Subscriptions
from agent.settings import Subscription

LEVEL = st.sampled_from(["", "a", "b", "$x", "c"])
NAMES = st.lists(LEVEL, min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = (
    st.tuples(st.lists(st.one_of(LEVEL, st.just("+")), min_size=0, max_size=4), st.booleans())
    .map(lambda pair: "/".join([*pair[0], "#"] if pair[1] else pair[0]))
    .filter(bool)
)
ALL_NAMES = ["/".join(p) for n in (1, 2, 3, 4) for p in itertools.product(["", "a", "b", "$x", "zz"], repeat=n)]
ALL_NAMES = [name for name in ALL_NAMES if name]


@pytest.mark.parametrize("subject", ["a", "+", "#", "a/#", "+/b/#", "/", "a//b", "$SYS/#", "+/+"])
def test_filters_that_are_allowed(subject: str) -> None:
    assert topics.filter_problem(subject) is None


@pytest.mark.parametrize("subject", ["", "a#", "#/a", "a/b+", "+a", "a/#/b", "a\0b", "a" * 65536, "\ud800"])
def test_filters_that_are_refused(subject: str) -> None:
    assert topics.filter_problem(subject)


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a\0"])
def test_names_that_are_refused(topic: str) -> None:
    assert topics.name_problem(topic)


@given(FILTERS, NAMES)
def test_matches_as_paho_does(subject: str, topic: str) -> None:
    assert topics.matches(subject, topic) == topic_matches_sub(subject, topic)


@given(FILTERS, FILTERS)
@settings(max_examples=150, deadline=None)
def test_overlap_join_and_cover_against_enumeration(a: str, b: str) -> None:
    in_a = {t for t in ALL_NAMES if topic_matches_sub(a, t)}
    in_b = {t for t in ALL_NAMES if topic_matches_sub(b, t)}
    assert topics.overlaps(a, b) == topics.overlaps(b, a)
    if in_a & in_b:
        assert topics.overlaps(a, b)
        joined = topics.join(a, b)
        assert topics.filter_problem(joined) is None
        assert all(topic_matches_sub(joined, t) for t in in_a | in_b)
    if topics.covers(a, b):
        assert in_b <= in_a


@given(st.lists(FILTERS, max_size=6))
@settings(max_examples=150, deadline=None)
def test_a_disjoint_cover_delivers_each_wanted_topic_exactly_once(filters: list[str]) -> None:
    cover = topics.disjoint_cover(filters)
    for topic in ALL_NAMES:
        hits = sum(topic_matches_sub(f, topic) for f in cover)
        assert hits <= 1
        if any(topic_matches_sub(f, topic) for f in filters):
            assert hits == 1


def test_a_cover_widens_no_more_than_it_must() -> None:
    assert topics.disjoint_cover(["a/b", "a/+", "c"]) == {"a/+", "c"}
    assert topics.disjoint_cover(["a/b/+", "a/+/c"]) == {"a/+/+"}
    assert topics.disjoint_cover(["a/b", "a/c"]) == {"a/b", "a/c"}
    assert topics.disjoint_cover(["$x/a", "+/a", "#"]) == {"$x/a", "#"}
    assert topics.disjoint_cover(["a", "a/#", "a/b/c"]) == {"a/#"}


SUBSCRIPTIONS = st.lists(
    st.builds(
        Subscription,
        source=st.sampled_from(["local", "cloud"]),
        subject=FILTERS,
        target=st.sampled_from(["function:a", "function:b", "cloud"]),
    ),
    max_size=8,
)


@given(SUBSCRIPTIONS, NAMES)
def test_each_target_once_and_just_those_that_match(subscriptions: list[Subscription], topic: str) -> None:
    table = Subscriptions(subscriptions)
    wanted = {s.target for s in subscriptions if s.source == "local" and topic_matches_sub(s.subject, topic)}
    first, again = table.route("local", topic), table.route("local", topic)
    assert len(set(first)) == len(first)
    assert set(first) == wanted
    assert again == first


@given(st.lists(FILTERS, max_size=8), st.lists(st.integers(0, 7), max_size=4), FILTERS)
def test_a_tree_of_filters_finds_just_those_that_overlap(filters: list[str], gone: list[int], other: str) -> None:
    tree, kept = FilterTree(), set(filters)
    for each in filters:
        tree.add(each)
    for each in {filters[n] for n in gone if n < len(filters)}:
        tree.remove(each)
        kept.remove(each)
    assert sorted(tree.overlapping(other)) == sorted(each for each in kept if topics.overlaps(each, other))


def test_ten_thousand_filters_are_covered_without_comparing_each_with_each() -> None:
    """Counted, not timed: with every pair compared it would be 50 million."""
    filters = [f"site/{n % 100}/machine/{n}/{kind}" for n in range(3_300) for kind in ("+", "x", "y/#")]
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        cover = topics.disjoint_cover(filters)
    finally:
        sys.setprofile(None)
    assert len(cover) == 3_300
    assert calls < 100 * len(filters)


def cycle(*rows: tuple[str, str, str], **more: object) -> list[Subscription] | None:
    return find_cycle([Subscription(*row) for row in rows], **more)  # type: ignore[arg-type]


def test_a_function_that_hears_itself_over_a_link_is_a_cycle() -> None:
    hears = ("local", "s/#", "function:f"), ("function:f", "s/+/f", "local")
    assert cycle(*hears)
    assert cycle(*hears, through=[]) is None
    assert cycle(("local", "s/+", "function:f"), ("function:f", "s/+/f", "local")) is None


def test_a_bridge_there_and_back_is_a_cycle_only_where_it_closes() -> None:
    assert cycle(("local", "a", "cloud"), ("cloud", "a", "local"))
    assert cycle(("local", "a", "cloud"), ("cloud", "b", "local")) is None
    assert cycle(("local", "a", "cloud")) is None
    assert cycle(("local", "a", "cloud"), one_link=True)


def test_a_long_round_is_found_and_told_in_order() -> None:
    found = cycle(
        ("local", "in", "function:f"),
        ("function:f", "mid", "function:g"),
        ("function:g", "in", "local"),
        ("local", "x", "cloud"),
    )
    assert found is not None
    assert [s.target for s in found] == ["local", "function:f", "function:g"]


ENDS = ["local", "cloud", "function:a", "function:b"]


@given(
    st.lists(
        st.builds(Subscription, source=st.sampled_from(ENDS), subject=FILTERS, target=st.sampled_from(ENDS)), max_size=7
    ),
    st.sets(st.sampled_from(["local", "cloud"])),
    st.booleans(),
)
def test_a_cycle_is_found_where_there_is_one(rows: list[Subscription], through: set[str], one_link: bool) -> None:
    def feeds(a: Subscription, b: Subscription) -> bool:
        links = ("local", "cloud")
        if a.target.startswith("function:"):
            return a.target == b.source
        met = a.target == b.source or (one_link and a.target in links and b.source in links)
        return met and topics.overlaps(a.subject, b.subject)

    reached = {a: {b for b in rows if feeds(a, b)} for a in rows}
    for _ in rows:  # the transitive closure
        reached = {a: found.union(*(reached[b] for b in found)) for a, found in reached.items()}
    expected = any(a in reached[a] and a.target in through for a in rows)
    found = find_cycle(rows, through=through, one_link=one_link)
    assert (found is not None) == expected
    if found:
        assert found[0].target in through
        assert all(feeds(a, b) for a, b in zip(found, found[1:] + found[:1], strict=True))
