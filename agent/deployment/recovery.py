"""What a start finds in the state directory: the group that is to run, whole, and the deployment that was interrupted.

All functions block. Doing it twice, or being killed in it, changes nothing.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from agent.deployment import machine
from agent.deployment.journal import Record
from agent.deployment.store import Group, Store
from agent.errors import IntegrityError, RejectedError

log = logging.getLogger(__name__)


def resume(store: Store, record: Record) -> Record:
    """The interrupted deployment in a state that it can go on from, with `current` where it was before it."""
    state = machine.resumed(record.state)
    log.warning("deployment %s was interrupted in %s, it goes on in %s", record.id, record.state.value, state.value)
    if record.group is not None and store.current_number() == record.group:
        try:
            store.swap(record.previous)
        except IntegrityError as error:
            log.error("%s", error)  # `whole_group` finds another
    return replace(record, state=state, attempt=record.attempt + 1)


def last_good(store: Store) -> Group:
    """The group that ran before the current one, every file of it read.

    Raises:
        RejectedError: NOTHING_TO_ROLL_BACK.
    """
    try:
        current = store.current()
        if current is None or current.previous is None:
            why = "nothing ran before what runs now" if current else "nothing is deployed"
            raise RejectedError("NOTHING_TO_ROLL_BACK", why, "Deploy the group that is wanted.")
        found = store.group(current.previous)
        store.verify(found)
    except IntegrityError as error:
        text = f"the group before is not whole any more: {error.message}"
        raise RejectedError("NOTHING_TO_ROLL_BACK", text, "Deploy the group that is wanted.") from error
    return found


def whole_group(store: Store, unproven: int | None) -> Group | None:
    """The current group once all its files have been read; if it is damaged, the newest older one that is whole.

    Args:
        unproven: the group of the interrupted deployment; it is never chosen in another's place. A rollback's was
            proven before.
    """
    current = store.current_number()
    if current is None:
        return None
    older = [number for number in reversed(store.numbers()) if number < current and number != unproven]
    for number in (current, *older):
        try:
            group = store.group(number)
            store.verify(group)
        except IntegrityError as error:
            log.error("group %d cannot run: %s", number, error)
            continue
        if number != current:
            log.error("group %d runs in the place of group %d", number, current)
            store.swap(number)
        return group
    log.error("no whole group is left; deploy again")
    store.swap(None)
    return None
