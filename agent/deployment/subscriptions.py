"""Reads a document's Subscriptions: Greengrass V1's ends (ARNs) become this project's. Pure; notes every problem."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Final

from agent.deployment.definition import Function
from agent.deployment.fields import Fields, nearest, shown
from agent.deployment.resources import ID, ID_WORDS
from agent.routing import topics
from agent.routing.subscriptions import LINKS, SHADOWS
from agent.settings import Subscription

MAX_SUBSCRIPTIONS: Final = 10_000  # V1: subscriptions a group
THING_ARN: Final = re.compile(r"arn:aws[a-z-]*:iot:[a-z0-9-]*:[0-9]*:thing/.+")
SHADOW_SERVICE: Final = re.compile(
    r"GGShadowService|arn:aws[a-z-]*:lambda:::function:GGShadowService(:[A-Za-z0-9$_-]+)?"
)
LEFT_OUT: Final = re.compile(
    r"arn:aws[a-z-]*:lambda:::function:GG[A-Za-z0-9_-]*(:[A-Za-z0-9$_-]+)?"
    r"|arn:aws[a-z-]*:greengrass:.*:/?connectors/.+"
)


def read_subscriptions(document: Fields, functions: Mapping[str, Function]) -> tuple[Subscription, ...]:
    """All subscriptions that could be read; those of connectors are left out with a warning."""
    found: dict[tuple[str, str, str], Subscription] = {}
    ids: set[str] = set()
    for value, where in document.items("Subscriptions", MAX_SUBSCRIPTIONS):
        fields = Fields(value, where, document.problems)
        id = fields.text("Id", required=True, pattern=ID, what=ID_WORDS)
        subject = _subject(fields)
        sources, targets = _ends(fields, "Source", functions), _ends(fields, "Target", functions)
        fields.done()
        if id in ids:
            fields.bad("Id", f"a second subscription has the Id {id}")
        if id is None or subject is None:
            continue
        ids.add(id)
        for source, target in itertools.product(sources, targets):
            _add(Subscription(source, subject, target, id), fields, found)
    return tuple(found.values())


def _add(new: Subscription, fields: Fields, found: dict[tuple[str, str, str], Subscription]) -> None:
    key = (new.source, new.subject, new.target)
    things = any(THING_ARN.fullmatch(str(fields.take(end))) for end in ("Source", "Target"))
    if new.source == new.target == "local" and things:
        fields.problems.warn(fields.where, "is left out: devices on one broker have each other's messages already")
    elif new.source == new.target and new.source in LINKS:
        fields.bad("", f"goes from {new.source} to itself: who listens there has it already; leave it out")
    elif key in found and not things:  # all things are `local`: what V1 told apart may be one here
        fields.bad("", f"says the same as the subscription {found[key].id}")
    else:
        found.setdefault(key, new)


def _subject(fields: Fields) -> str | None:
    subject = fields.text("Subject", required=True)
    problem = topics.filter_problem(subject) if subject else None
    if problem:
        fields.bad("Subject", problem)
        return None
    return subject


def _ends(fields: Fields, key: str, functions: Mapping[str, Function]) -> list[str]:
    """The ends that a Source or Target means; several where several functions have that Lambda ARN."""
    end = fields.text(key, required=True)
    if end is None or end in ("local", "cloud"):
        return [end] if end else []
    if SHADOW_SERVICE.fullmatch(end):
        return [SHADOWS]
    if LEFT_OUT.fullmatch(end):
        fields.problems.warn(fields.where, f"is left out: this core has no {end}")
        return []
    if THING_ARN.fullmatch(end):
        return ["local"]
    if end.startswith("function:") and end[9:] in functions:
        return [end]
    same = [f"function:{f.id}" for f in functions.values() if f.arn == end and end.startswith("arn:")]
    if not same:
        known = ["local", "cloud", *(f"function:{id}" for id in functions)]
        what = "local, cloud, GGShadowService, function:ID of this group, a thing's ARN or a function's"
        fields.bad(key, f"must be {what}, not {shown(end)}{nearest(end, known)}")
    return same
