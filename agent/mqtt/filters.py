"""Which filters a connection is subscribed to, and what to send so that they become the wanted ones. Pure.

One round at a time: all new filters are subscribed and answered before those that are gone are unsubscribed, so that
no message is missed while one filter replaces another. `in_force` names everything that the broker may hold for this
session, from before the SUBSCRIBE leaves until after the UNSUBACK came: journalled, it lets a later start tidy up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

# AWS IoT Core takes at most 8 filters in a SUBSCRIBE.
PER_PACKET = 8
REFUSED = 0x80  # SUBACK reason codes from here on are failures


class FilterSet:
    """The filters of one link.

    Args:
        known: in force in the broker's session from an earlier run.
        changed: called with the set in force, before a SUBSCRIBE leaves and after the last UNSUBACK of a round.
    """

    def __init__(self, known: Iterable[str], changed: Callable[[frozenset[str]], None]) -> None:
        self.refused: dict[str, int] = {}
        self.rounds = 0
        self._changed = changed
        self._in_force = frozenset(known)
        self._wanted: tuple[str, ...] = ()
        self._confirmed: set[str] = set()
        self._unanswered: set[str] = set()  # of those that are wanted
        self._gone: set[str] = set()  # unsubscribed in the round that is under way
        self._under_way: dict[int, tuple[bool, Sequence[str]]] = {}  # packet id -> (subscribe, filters)

    @property
    def settled(self) -> bool:
        """Whether every wanted filter was answered on this connection."""
        return not self._unanswered

    @property
    def under_way(self) -> bool:
        """Whether an answer of the broker is outstanding."""
        return bool(self._under_way)

    def want(self, filters: Iterable[str]) -> None:
        """The set that should be in force; a filter that was refused before is asked for again."""
        self._wanted = tuple(dict.fromkeys(filters))
        self.refused.clear()
        self._unanswered = set(self._wanted).difference(self._confirmed)

    def connected(self, session_present: bool) -> None:
        """A new connection: everything wanted is subscribed again, whatever the broker remembers."""
        self._confirmed.clear()
        self._under_way.clear()
        self.refused.clear()
        self._unanswered = set(self._wanted)
        if not session_present:
            self._set_in_force(frozenset())

    def next_round(self) -> tuple[bool, list[list[str]]]:
        """(subscribe?, filters a packet); no packets where there is nothing to do or an answer is outstanding."""
        if self._under_way:
            return True, []
        new = [one for one in self._wanted if one in self._unanswered]
        if new:
            self._set_in_force(self._in_force.union(new))
            return True, _packets(new)
        return False, _packets(sorted(self._in_force.difference(self._wanted)))

    def sent(self, packet_id: int, subscribe: bool, filters: Sequence[str]) -> None:
        """A packet of the round has left under this id."""
        self.rounds += 1
        self._under_way[packet_id] = (subscribe, filters)

    def answered(self, packet_id: int, codes: Sequence[int]) -> dict[str, int]:
        """A SUBACK or UNSUBACK came. Returns the filters that it refuses, with their reason codes."""
        subscribe, filters = self._under_way.pop(packet_id, (False, ()))
        if not subscribe:
            self._confirmed.difference_update(filters)
            self._unanswered.update(set(filters).intersection(self._wanted))
            self._gone.update(filters)
            if not self._under_way:
                self._set_in_force(self._in_force.difference(self._gone))
                self._gone.clear()
            return {}
        refused = {one: code for one, code in zip(filters, codes, strict=False) if code >= REFUSED}
        self._confirmed.update(one for one in filters if one not in refused)
        self._unanswered.difference_update(filters)
        self.refused.update(refused)
        if refused:
            self._set_in_force(self._in_force.difference(refused))
        return refused

    def _set_in_force(self, filters: frozenset[str]) -> None:
        if filters != self._in_force:
            self._in_force = filters
            self._changed(filters)


def _packets(filters: Sequence[str]) -> list[list[str]]:
    return [list(filters[at : at + PER_PACKET]) for at in range(0, len(filters), PER_PACKET)]
