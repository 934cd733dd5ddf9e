"""The port of the workers where there are none: for tests of what deployments leave on the disk."""

from __future__ import annotations

from agent.deployment.definition import Probation
from agent.deployment.store import Group


class NoWorkers:
    """Every step succeeds at once; `refuse` makes the group of that step's name fail."""

    def __init__(self, refuse: dict[str, Exception] | None = None) -> None:
        self._refuse = refuse or {}
        self._running: int | None = None

    async def warm(self, group: Group) -> None:
        """Nothing is started."""

    async def check(self, group: Group) -> None:
        """Every model is well."""

    def remarks(self, group: Group) -> tuple[str, ...]:
        """Nobody has anything to say."""
        return ()

    async def promote(self, group: Group) -> None:
        """The group is in use now."""
        self._running = group.number

    async def observe(self, group: Group, bounds: Probation) -> None:
        """The probation is over at once, well or not."""
        if group.deployment.id in self._refuse:
            raise self._refuse[group.deployment.id]

    async def discard(self, group: Group) -> None:
        """There is nothing to end."""

    async def release(self, group: Group) -> None:
        """There is nothing to end."""

    def in_use(self) -> set[int]:
        """The group that was promoted last."""
        return set() if self._running is None else {self._running}
