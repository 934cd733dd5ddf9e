"""The table of a deployment's life: every pair of state and event, and where a restart leads."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.deployment.machine import (
    CANCELLABLE,
    FINAL,
    PHASES,
    STATUS,
    TRANSITIONS,
    Effect,
    Event,
    IllegalTransition,
    State,
    resumed,
    step,
)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair_is_a_transition_or_an_error(state: State, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert step(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalTransition) as caught:
            step(state, event)
        assert state.value in str(caught.value)


@pytest.mark.parametrize("state", State)
def test_final_states_have_no_way_out_and_all_others_know_a_fault(state: State) -> None:
    known = {event for s, event in TRANSITIONS if s is state}
    assert (known == set()) == (state in FINAL)
    assert state in FINAL or Event.FAULT in known


@pytest.mark.parametrize("state", State)
def test_every_final_state_is_durable_before_it_is_said(state: State) -> None:
    assert state in PHASES
    for reached in (s for s in TRANSITIONS.values() if s.state is state and state in FINAL):
        assert state in STATUS
        assert reached.effects.index(Effect.JOURNAL) < reached.effects.index(Effect.REPORT)


@pytest.mark.parametrize("state", State)
def test_what_was_routed_is_turned_back_never_just_failed(state: State) -> None:
    if state in (State.SWAPPING, State.PROMOTING, State.PROBATION):
        assert step(state, Event.FAULT).state is State.TURNING_BACK
        assert (state in CANCELLABLE) == (state is State.PROBATION)


@pytest.mark.parametrize("state", State)
def test_the_way_back_is_kept_until_the_commit_is_durable(state: State) -> None:
    for reached in (s for s in TRANSITIONS.values() if s.state is state):
        assert (Effect.RELEASE in reached.effects) == (state is State.COMMITTED)
        if Effect.RELEASE in reached.effects:
            assert reached.effects.index(Effect.JOURNAL) < reached.effects.index(Effect.RELEASE)


@given(st.lists(st.sampled_from(list(Event)), max_size=30), st.booleans())
def test_whatever_happens_it_ends_and_commits_only_after_all_steps(events: list[Event], restart: bool) -> None:
    state, seen = State.RECEIVED, [State.RECEIVED]
    for event in events:
        try:
            state = step(state, event).state
        except IllegalTransition:
            continue
        seen.append(state)
        if restart and state not in FINAL:
            state = resumed(state)
    if state is State.COMMITTED:
        assert [s for s in seen if s is not State.TURNING_BACK][:1] == [State.RECEIVED]
        assert {State.FETCHING, State.WARMING, State.CHECKING, State.SWAPPING, State.PROMOTING} <= set(seen)
    for _ in range(10):  # from anywhere, faults alone lead to an end
        if state in FINAL:
            break
        state = step(state, Event.FAULT).state
    assert state in FINAL


@pytest.mark.parametrize("state", [s for s in State if s not in FINAL])
def test_a_restart_never_goes_on_with_workers_of_another_life(state: State) -> None:
    assert resumed(state) in (State.RECEIVED, State.FETCHING, State.WARMING, State.TURNING_BACK)
    assert resumed(resumed(state)) is resumed(state)
