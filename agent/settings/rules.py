"""What must hold between the values of topics.yaml: no doubles, no rounds without end, a provider's limits. Pure.

Source of AWS's limits: AWS IoT Core endpoints and quotas (message broker and protocol limits).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from agent.routing.cycles import find_cycle
from agent.routing.topics import disjoint_cover, overlaps
from agent.settings import Link, Subscription, Topics
from agent.settings.file import Problems

Lined = tuple[int, Subscription]

AWS_TOPIC_BYTES = 256
AWS_TOPIC_SLASHES = 7
AWS_SUBSCRIPTIONS = 50
_BASIC_INGEST = re.compile(r"^\$aws/rules/[^/]+/", re.IGNORECASE)  # its slashes do not count
_PLACEHOLDER = re.compile(r"\{[a-z]+\}")


def check_subscriptions(found: Sequence[Lined], local: Link, cloud: Link | None, problems: Problems) -> None:
    """Notes doubles, subscriptions that lead where they come from, and cycles on the embedded broker."""
    good = _without_doubles(found, problems)
    straight = [each for each in good if not _leads_back(each, cloud is None, problems)]
    if local.embedded:
        _check_cycles(straight, local, cloud, problems)


def _without_doubles(found: Sequence[Lined], problems: Problems) -> list[Lined]:
    first: dict[Subscription, int] = {}
    for line, each in found:
        if each in first:
            problems.add(line, f"the same subscription is on line {first[each]} already")
        first.setdefault(each, line)
    return [(line, each) for each, line in first.items()]


def _leads_back(lined: Lined, one_connection: bool, problems: Problems) -> bool:
    line, each = lined
    if each.source == each.target and not each.source.startswith("function:"):
        problems.add(line, f"from `{each.source}` to itself: who listens there has the message already; leave it out")
        return True
    if one_connection and {each.source, each.target} == {"local", "cloud"}:
        problems.add(line, "with `cloud: local` both are one broker: nothing goes from one to the other; leave it out")
        return True
    return False


def _check_cycles(lined: Sequence[Lined], local: Link, cloud: Link | None, problems: Problems) -> None:
    one_broker = cloud is None or _same_address(local, cloud)
    through = ("local", "cloud") if one_broker else ("local",)
    rest = list(lined)
    while cycle := find_cycle([each for _, each in rest], through=through, one_link=one_broker):
        lines = {each: line for line, each in rest}
        steps = " -> ".join(f"{each.source} {each.subject}" for each in cycle)
        at = ", ".join(str(lines[each]) for each in cycle)
        problems.add(
            lines[cycle[0]],
            f"a message could go round for ever: {steps} -> {cycle[-1].target} (lines {at});"
            " the embedded broker speaks MQTT 3.1.1 and gives back what the agent publishes",
        )
        rest = [(line, each) for line, each in rest if each not in cycle]


def _same_address(local: Link, cloud: Link) -> bool:
    return _plain(local.address) == _plain(cloud.address)


def _plain(address: tuple[str, int]) -> tuple[str, int]:
    host, port = address
    return ("127.0.0.1" if host in ("localhost", "::1", "0.0.0.0") else host, port)


def check_own_topics(topics: Topics, line: int, problems: Problems) -> None:
    """Notes where the agent would read on `deployments` what it says itself."""
    for field in dataclasses.fields(topics):
        said = _PLACEHOLDER.sub("+", getattr(topics, field.name))
        if field.name != "deployments" and _reaches(said, topics.deployments):
            problems.add(line, f"`topics.{field.name}` can be the same topic as `topics.deployments`")


def _reaches(said: str, topic: str) -> bool:
    levels = ["+" if "+" in level else level for level in said.split("/")]
    return overlaps("/".join(levels), topic)


def check_aws_limits(
    found: Sequence[Lined],
    topics: Topics,
    local: Link,
    cloud: Link | None,
    jobs: str | None,
    links_line: int,
    problems: Problems,
) -> None:
    """Notes what AWS IoT Core would refuse, where a link leads there."""
    own = {topics.deployments}
    if jobs:
        from agent.cloud import job_messages  # only where it is used

        own.update(job_messages.filters(jobs))
    for link in (local, cloud):
        if link is None or not link.aws:
            continue
        names = ("local", "cloud") if cloud is None else (link.name,)
        if not link.tls:
            problems.add(links_line, f"`links.{link.name}` is AWS IoT Core, which speaks TLS only: write mqtts://")
        for line, each in found:
            if each.source in names or each.target in names:
                _check_topic(each.subject, line, problems)
        if "cloud" in names:
            _check_own(topics, links_line, problems)
        wanted = {each.subject for _, each in found if each.source in names}
        _check_count(wanted | (own if "cloud" in names else set()), links_line, problems)


def _check_own(topics: Topics, line: int, problems: Problems) -> None:
    for field in dataclasses.fields(topics):
        _check_topic(getattr(topics, field.name), line, problems)


def _check_topic(topic: str, line: int, problems: Problems) -> None:
    """Filled-in names may only make a topic longer, so that a template is measured without them."""
    counted = _BASIC_INGEST.sub("", _PLACEHOLDER.sub("x", topic))
    size, slashes = len(counted.encode()), counted.count("/")
    if size > AWS_TOPIC_BYTES:
        problems.add(line, f"{topic!r} has {size} bytes; AWS IoT Core allows {AWS_TOPIC_BYTES}")
    if slashes > AWS_TOPIC_SLASHES:
        problems.add(line, f"{topic!r} has {slashes} slashes; AWS IoT Core allows {AWS_TOPIC_SLASHES}")


def _check_count(wanted: Iterable[str], line: int, problems: Problems) -> None:
    count = len(disjoint_cover(wanted))
    if count > AWS_SUBSCRIPTIONS:
        problems.add(line, f"{count} filters are subscribed; AWS IoT Core allows {AWS_SUBSCRIPTIONS} a connection")
