"""The life of one deployment as a table: which event leads from which state to which, and what must then be done.

Pure. An event that a state does not know raises `IllegalTransition`, and nothing happens. The shell (`deployer`) does
what a state is for (see `State`), turns the outcome into an event, steps, and carries out the effects in their order.
What is done before a JOURNAL is done again after a power cut, and may be.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from agent.values import dataclass


class State(str, Enum):
    """What a deployment is doing; the value is what the journal says."""

    RECEIVED = "RECEIVED"  # its document is journalled; it waits its turn and is then looked at
    FETCHING = "FETCHING"  # its objects are fetched, verified, unpacked and synced; its group is written
    WARMING = "WARMING"  # new workers load the new objects beside the running ones
    CHECKING = "CHECKING"  # their models pass the health checks
    SWAPPING = "SWAPPING"  # the link `current` is about to turn, or has turned
    PROMOTING = "PROMOTING"  # requests are routed to the new workers
    PROBATION = "PROBATION"  # the new workers are watched at work, those of before are kept
    TURNING_BACK = "TURNING_BACK"  # what ran before is put back
    COMMITTED = "COMMITTED"
    FAILED = "FAILED"
    REJECTED = "REJECTED"


class Event(str, Enum):
    """The outcome of what a state is for."""

    ACCEPTED = "ACCEPTED"
    REFUSED = "REFUSED"  # no source was fetched
    FETCHED = "FETCHED"
    WARMED = "WARMED"
    HEALTHY = "HEALTHY"
    SWAPPED = "SWAPPED"
    PROMOTED = "PROMOTED"  # and nothing more is asked of it
    ON_TRIAL = "ON_TRIAL"  # promoted, to be watched
    PASSED = "PASSED"
    TURNED_BACK = "TURNED_BACK"
    FAULT = "FAULT"  # whatever went wrong, a passed deadline and a cancellation included


class Effect(str, Enum):
    """What the shell does at a transition, in the order of the table."""

    JOURNAL = "JOURNAL"
    REPORT = "REPORT"
    DISCARD = "DISCARD"  # end the new workers, if any
    RELEASE = "RELEASE"  # end the workers of before, which were kept for the way back
    PRUNE = "PRUNE"  # remove what no group needs any more


class IllegalTransition(Exception):  # noqa: N818 - the name that the field uses
    """The state does not know the event; nothing happened."""


@dataclass(frozen=True, slots=True)
class Step:
    """Where an event leads."""

    state: State
    effects: tuple[Effect, ...]


_GO_ON: Final = (Effect.JOURNAL, Effect.REPORT)
_COMMIT: Final = (*_GO_ON, Effect.RELEASE, Effect.PRUNE)
_GIVE_UP: Final = (Effect.DISCARD, Effect.JOURNAL, Effect.REPORT, Effect.PRUNE)

TRANSITIONS: Final[dict[tuple[State, Event], Step]] = {
    (State.RECEIVED, Event.ACCEPTED): Step(State.FETCHING, _GO_ON),
    (State.RECEIVED, Event.REFUSED): Step(State.REJECTED, _GO_ON),
    (State.RECEIVED, Event.FAULT): Step(State.FAILED, _GO_ON),
    (State.FETCHING, Event.FETCHED): Step(State.WARMING, _GO_ON),
    (State.FETCHING, Event.FAULT): Step(State.FAILED, _GIVE_UP),
    # No JOURNAL: after a restart no worker is warm, whether it was checked or not.
    (State.WARMING, Event.WARMED): Step(State.CHECKING, (Effect.REPORT,)),
    (State.WARMING, Event.FAULT): Step(State.FAILED, _GIVE_UP),
    (State.CHECKING, Event.HEALTHY): Step(State.SWAPPING, _GO_ON),
    (State.CHECKING, Event.FAULT): Step(State.FAILED, _GIVE_UP),
    # No JOURNAL: after a restart it makes no difference whether the link was turned.
    (State.SWAPPING, Event.SWAPPED): Step(State.PROMOTING, ()),
    (State.SWAPPING, Event.FAULT): Step(State.TURNING_BACK, (Effect.JOURNAL,)),
    (State.PROMOTING, Event.PROMOTED): Step(State.COMMITTED, _COMMIT),
    (State.PROMOTING, Event.ON_TRIAL): Step(State.PROBATION, _GO_ON),
    (State.PROMOTING, Event.FAULT): Step(State.TURNING_BACK, (Effect.JOURNAL,)),
    (State.PROBATION, Event.PASSED): Step(State.COMMITTED, _COMMIT),
    (State.PROBATION, Event.FAULT): Step(State.TURNING_BACK, (Effect.JOURNAL,)),
    (State.TURNING_BACK, Event.TURNED_BACK): Step(State.FAILED, _GIVE_UP),
    (State.TURNING_BACK, Event.FAULT): Step(State.FAILED, _GIVE_UP),
}

FINAL: Final = frozenset({State.COMMITTED, State.FAILED, State.REJECTED})
CANCELLABLE: Final = frozenset({State.RECEIVED, State.FETCHING, State.WARMING, State.CHECKING, State.PROBATION})
TRIALS: Final = frozenset({State.CHECKING, State.PROBATION})
STATUS: Final = {State.COMMITTED: "SUCCEEDED", State.FAILED: "FAILED", State.REJECTED: "REJECTED"}
PHASES: Final = {
    State.RECEIVED: "received",
    State.FETCHING: "fetching",
    State.WARMING: "warming",
    State.CHECKING: "checking",
    State.SWAPPING: "swapping",
    State.PROMOTING: "swapping",
    State.PROBATION: "probation",
    State.TURNING_BACK: "turning back",
    State.COMMITTED: "committed",
    State.FAILED: "failed",
    State.REJECTED: "rejected",
}


def step(state: State, event: Event) -> Step:
    """Where `event` leads from `state`.

    Raises:
        IllegalTransition: the state does not know the event.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"{event.value} in {state.value}") from None


def resumed(state: State) -> State:
    """Where a deployment goes on after a restart, when no worker of any group runs.

    Whatever the state, `current` is first turned back to what it was before the deployment: its workers were proven in
    another life, and prove themselves again beside those of the group that ran before.

    Args:
        state: the journalled one.

    Returns:
        A state that needs nothing but what is durable: a group that was written is not fetched again, as neither a
        swap nor a rollback may need the network.
    """
    if state in (State.CHECKING, State.SWAPPING, State.PROMOTING, State.PROBATION):
        return State.WARMING
    return state
