"""The routes in force: topics.yaml's subscriptions and the group's, put into the exchange and asked for at the brokers.

What is asked for is journalled, so that a filter that nobody wants any more is given up also after a restart.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from agent.activation import Activation
from agent.deployment.definition import Deployment
from agent.deployment.store import Group
from agent.errors import RejectedError
from agent.mqtt.link import Link
from agent.routing.cycles import find_cycle
from agent.routing.exchange import Exchange
from agent.routing.subscriptions import LINKS, Subscriptions
from agent.routing.topics import disjoint_cover
from agent.settings import Settings, Subscription

if TYPE_CHECKING:
    from agent.cloud.job_channel import JobChannel

log = logging.getLogger(__name__)

FILTERS = "filters.json"


class FilterJournal:
    """The filters in force at each link's broker, kept over restarts. Writing blocks for one small file."""

    def __init__(self, state: Path) -> None:
        self._file = state / FILTERS
        self._filters = _read_filters(self._file)

    def known(self, link: str) -> tuple[str, ...]:
        """What the broker of `link` may still hold of an earlier run."""
        return tuple(self._filters.get(link, ()))

    def note(self, link: str, filters: frozenset[str]) -> None:
        """Keeps what is in force now."""
        self._filters[link] = sorted(filters)
        draft = self._file.with_suffix(".tmp")
        draft.write_text(json.dumps(self._filters))
        os.replace(draft, self._file)


class Routes:
    """Who gets what: decides it from the settings and the group, and tells the exchange and the links."""

    def __init__(self, settings: Settings, links: Mapping[str, Link], control_link: str, exchange: Exchange) -> None:
        self._settings = settings
        self._links = links
        self._control_link = control_link
        self._exchange = exchange
        self._one_link = settings.cloud is None
        self.jobs: JobChannel | None = None

    def put(self, group: Group | None, activation: Activation) -> None:
        """Puts the subscriptions in force and asks the brokers for just what they need."""
        deployed = group.deployment.subscriptions if group else ()
        mine = self._without_cycles(self._settings.subscriptions, deployed)
        self._exchange.subscriptions = Subscriptions([self._merged(s) for s in (*mine, *deployed)])
        self._exchange.traits = activation.traits(group) if group else {}
        for name, link in self._links.items():
            wanted = set(self._exchange.subscriptions.subjects(name))
            if name == self._control_link:
                wanted.update((self._settings.topics.deployments, *(self.jobs.filters if self.jobs else ())))
            link.set_filters(disjoint_cover(wanted))

    async def settled(self) -> None:
        """Returns when every link that is up has the SUBACKs of all its filters."""
        await asyncio.gather(*(link.settled() for link in self._links.values()))

    def admit(self, deployment: Deployment) -> None:
        """Refuses a deployment whose subscriptions would send messages round for ever. Reads only; from any thread.

        Raises:
            RejectedError: CYCLE, ONE_CONNECTION.
        """
        for each in deployment.subscriptions if self._one_link else ():
            if each.source in LINKS and each.target in LINKS:
                raise RejectedError(
                    "ONE_CONNECTION",
                    f"Subscription {each.id} goes from {each.source} to {each.target}, which are one connection here.",
                    "Leave it out: whoever is subscribed gets the message already.",
                )
        cycle = self._cycle((*self._settings.subscriptions, *deployment.subscriptions))
        if cycle and any(s in deployment.subscriptions for s in cycle):
            way = "; ".join(_told(s) for s in cycle)
            raise RejectedError(
                "CYCLE",
                f"A message would go round for ever, because the broker speaks MQTT 3.1.1 only: {way}.",
                "Publish results on a topic that the function does not hear.",
            )

    def _merged(self, subscription: Subscription) -> Subscription:
        if not self._one_link:
            return subscription
        source, target = (("local" if end == "cloud" else end) for end in (subscription.source, subscription.target))
        return dataclasses.replace(subscription, source=source, target=target)

    def _cycle(self, subscriptions: tuple[Subscription, ...]) -> list[Subscription] | None:
        through = [name for name, link in self._links.items() if link.protocol == 4]
        addresses = {each.address for each in (self._settings.local, self._settings.cloud) if each}
        merged = [self._merged(s) for s in subscriptions]
        return find_cycle(merged, through=through, one_link=len(addresses) == 1) if through else None

    def _without_cycles(
        self, mine: tuple[Subscription, ...], deployed: tuple[Subscription, ...]
    ) -> tuple[Subscription, ...]:
        while cycle := self._cycle((*mine, *deployed)):
            out = next((s for s in mine if any(self._merged(s) == c for c in cycle)), None)
            if out is None:
                break  # a deployed one: it came before the broker proved to speak 3.1.1 only
            log.error("left out, because messages would go round for ever: %s", _told(out))
            mine = tuple(s for s in mine if s is not out)
        return mine


def _told(subscription: Subscription) -> str:
    return f"{subscription.source} {subscription.subject} -> {subscription.target}"


def _read_filters(file: Path) -> dict[str, list[str]]:
    try:
        found = json.loads(file.read_text())
        return {str(name): [str(f) for f in filters] for name, filters in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
