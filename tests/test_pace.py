"""When acknowledgements wait for the next packet: what begins it, what ends it, and what keeps it from coming back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.mqtt.pace import FEW, LOOKS_FIRST, LOOKS_MOST, MANY, PROVEN, Pace


def look(pace: Pace, heard: int) -> bool:
    pace.heard = heard
    again = pace.look()
    assert pace.heard == 0
    return again


def looks_until_brisk(pace: Pace) -> int:
    looks = 0
    while not pace.brisk:
        look(pace, MANY)
        looks += 1
    return looks


def test_it_takes_several_looks_in_a_row_and_one_that_finds_few_ends_it() -> None:
    pace = Pace()
    for _ in range(LOOKS_FIRST - 1):
        assert look(pace, MANY)
    assert not look(pace, MANY - 1)
    assert looks_until_brisk(pace) == LOOKS_FIRST
    assert look(pace, FEW)
    assert pace.brisk
    assert not look(pace, FEW - 1)
    assert not pace.brisk


def test_where_it_is_soon_over_the_next_takes_twice_as_long() -> None:
    pace, taken = Pace(), []
    for _ in range(16):
        taken.append(looks_until_brisk(pace))
        look(pace, 1)
    assert taken[:4] == [LOOKS_FIRST * 2**n for n in range(4)]
    assert taken[-2:] == [LOOKS_MOST, LOOKS_MOST]


def test_where_it_lasts_the_next_comes_as_soon_as_the_first() -> None:
    pace = Pace()
    looks_until_brisk(pace)
    look(pace, 1)
    looks_until_brisk(pace)
    for _ in range(PROVEN):
        look(pace, FEW)
    look(pace, 1)
    assert looks_until_brisk(pace) == LOOKS_FIRST


@given(st.lists(st.integers(0, 2 * MANY)))
def test_while_it_is_brisk_it_is_looked_at_again_and_two_looks_without_a_read_are_the_last(heard: list[int]) -> None:
    pace = Pace()
    for each in heard:
        again = look(pace, each)
        assert again or not pace.brisk
    look(pace, 0)
    assert not look(pace, 0)
    assert not pace.brisk
