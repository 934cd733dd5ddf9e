"""Which record goes out next: the kinds' shares of a link, and what a refused record does to its kind."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agent.cloud.lanes import FIRST_PAUSE_S, LONGEST_PAUSE_S, Lane, choose
from agent.cloud.spool_records import Record
from agent.messages import Outbound
from agent.settings import SpoolClass


def lane(kind: str, weight: int, count: int, *, newest_first: bool = False) -> Lane:
    made = Lane(kind, SpoolClass(weight=weight, newest_first=newest_first))
    seqs = range(count, 0, -1) if newest_first else range(1, count + 1)
    made.waiting.extend(Record(n, kind, f"e-{n}", Outbound("t", b"")) for n in seqs)
    return made


@given(st.dictionaries(st.sampled_from("abc"), st.integers(1, 9), min_size=1))
def test_kinds_share_a_link_by_their_weights(weights: dict[str, int]) -> None:
    lanes = [lane(kind, weight, 10 * weight) for kind, weight in weights.items()]
    for _ in range(10):
        round_ = Counter()  # type: Counter[str]
        for _ in range(sum(weights.values())):
            chosen = choose(lanes, 0.0)
            assert chosen
            chosen.take()
            round_[chosen.kind] += 1
        assert round_ == weights
    assert choose(lanes, 0.0) is None


def test_results_do_not_wait_behind_a_week_of_captures() -> None:
    captures, results = lane("capture", 1, 600_000 // 1000), lane("result", 8, 1)
    for _ in range(50):
        chosen = choose([captures], 0.0)
        assert chosen is captures
        captures.take()
    first_two = []
    for _ in range(2):
        chosen = choose([captures, results], 0.0)
        assert chosen
        first_two.append(chosen.kind)
        chosen.take()
    assert first_two[0] == "result"


def test_a_refused_record_goes_alone_after_a_pause_that_grows() -> None:
    it = lane("result", 8, 5)
    first, second = it.take(), it.take()
    it.in_flight.update((1, 2))
    now, pauses = 0.0, []
    for attempt in range(8):
        it.in_flight.discard(first.seq)
        assert it.counts(first)
        it.put_back(first)
        pauses.append(it.pause(first, now))
        if not attempt:  # what was in flight with it says nothing of itself
            it.in_flight.discard(second.seq)
            assert not it.counts(second)
            it.put_back(second)
            it.pause(second, now)
        assert not it.ready(now)
        now += pauses[-1]
        assert it.ready(now)
        assert it.take() is first
        it.in_flight.add(first.seq)
        assert not it.ready(now)  # alone
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S
    it.in_flight.discard(first.seq)
    it.taken(first)
    assert it.ready(now)
    assert [it.take().seq for _ in range(4)] == [2, 3, 4, 5]


def test_what_is_put_back_takes_its_place_again() -> None:
    oldest, newest = lane("result", 1, 4), lane("capture", 1, 4, newest_first=True)
    for each, expected in ((oldest, [1, 2, 3, 4]), (newest, [4, 3, 2, 1])):
        one, two = each.take(), each.take()
        each.put_back(one)
        each.put_back(two)
        assert [each.take().seq for _ in range(4)] == expected
