"""Which pool of a function is the one in use, and the turn from one group's pools to the next's. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from agent.errors import FunctionError
from agent.inference.pool import Pool
from agent.inference.requests import Failure, Origin, Request


class Dispatcher:
    """The pools in use, by function Id."""

    def __init__(self) -> None:
        self.pools: dict[str, Pool] = {}

    def submit(self, request: Request) -> None:
        """Gives the request to its function; a function that is not deployed is answered so."""
        pool = self.pools.get(request.function)
        if pool is not None:
            pool.submit(request)
        else:
            request.settle(
                request, Failure(Origin(request.function, None, None, None), _not_deployed(request.function))
            )

    def ready(self, function: str) -> bool:
        """Whether a request for `function` would be run now (one that is not deployed is answered now)."""
        pool = self.pools.get(function)
        if pool is None:
            return True
        for slot in pool.slots.values():  # as `pool.serves`, with one call less
            if slot.ready and not slot.condemned:
                return True
        return pool.state != "starting"

    def has_room(self, function: str, size: int) -> bool:
        """Whether a request of so many bytes for `function` would be run or queued now."""
        pool = self.pools.get(function)
        return pool is not None and pool.has_room(size)

    def crowded(self, function: str) -> bool:
        """Whether so many requests wait for `function` that more had better wait with their broker."""
        pool = self.pools.get(function)
        return pool is not None and pool.crowded

    def promote(self, pools: Iterable[Pool], drained: Callable[[Pool], None] | None = None) -> None:
        """Puts `pools` into use in place of all others; what waited in those goes to the new ones.

        Args:
            drained: called for each of the old pools at its end; None: they stay as they are, without requests.
        """
        old = self.pools
        self.pools = {pool.origin.function: pool for pool in pools}
        for pool in old.values():
            if drained is None:
                pool.hand_over(self.submit)
            else:
                pool.drain(self.submit, partial(drained, pool))

    def states(self) -> list[tuple[str, str, str | None]]:
        """(function, state, tier of isolation) of each function in use, sorted."""
        return [(name, pool.state, pool.isolation) for name, pool in sorted(self.pools.items())]


def _not_deployed(function: str) -> FunctionError:
    return FunctionError(
        "FUNCTION_NOT_DEPLOYED",
        f"No function with the Id {function!r} is deployed on this core.",
        "Deploy a group that has it, or take the subscription away.",
    )
