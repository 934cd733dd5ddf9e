"""What failed its trial on this core, so that it is not tried again by itself. Pure.

An entry names the digests that a failed group had and the one before it had not: of models, and of functions' code. A
deployment that brings all of them again is refused, unless it asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from agent.errors import AgentError, FunctionError, RejectedError

MAX_ENTRIES: Final = 100
TRIALS: Final = ("HEALTH_CHECK_", "PROBATION_")
Entry = Mapping[str, Any]


def is_verdict(error: AgentError) -> bool:
    """Whether an error in a trial is about what is tried, and not a cancellation or a trouble of this core."""
    return error.code.startswith(TRIALS) or (isinstance(error, FunctionError) and error.code != "DISCARDED")


def entry_of(
    digests: Iterable[str], before: Iterable[str], deployment: str, reason: Mapping[str, str]
) -> dict[str, Any] | None:
    """The entry of a deployment that failed its trial; None where it brought nothing new."""
    fresh = sorted(set(digests) - set(before))
    return {"digests": fresh, "deploymentId": deployment, "code": reason["code"]} if fresh else None


def added(entries: Iterable[Entry], entry: Entry) -> list[Entry]:
    """The entries with one more; the oldest are forgotten."""
    return [*(each for each in entries if each["digests"] != entry["digests"]), entry][-MAX_ENTRIES:]


def lifted(entries: Iterable[Entry], digests: Iterable[str]) -> list[Entry]:
    """The entries without those of what runs now."""
    proven = set(digests)
    return [each for each in entries if not proven.issuperset(each["digests"])]


def refuse(entries: Iterable[Entry], digests: Iterable[str]) -> None:
    """Refuses what failed before.

    Raises:
        RejectedError: QUARANTINED.
    """
    brought = set(digests)
    for entry in entries:
        if brought.issuperset(entry["digests"]):
            names = ", ".join(entry["digests"])
            text = f"{names} failed in the deployment {entry['deploymentId']} on this core ({entry['code']})"
            remedy = "Deploy another version, or ask for this one again with Marram: {RetryQuarantined: true}."
            raise RejectedError("QUARANTINED", text, remedy)
