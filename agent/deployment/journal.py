"""What the agent must still know about its deployments after a power cut: one file, replaced whole at each change.

The file holds the deployment under way and the one that waits, the statuses by which a repeated id is answered, the
floor of sequence numbers and the statuses whose reports are not known to be safe. A damaged file is set aside, never a
reason not to start: `current` alone says what runs. The documents lie beside it, named by their digests.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, field
from pathlib import Path
from typing import Any, Final

from agent.deployment import durable
from agent.deployment.machine import FINAL, State
from agent.deployment.quarantine import Entry
from agent.values import dataclass

logger = logging.getLogger(__name__)

FORMAT: Final = 1
MAX_REMEMBERED: Final = 100  # ids answered with their last status
Status = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Record:
    """One deployment under way.

    Attributes:
        body_digest: names its document's file, hex.
        attempt: how often it was begun or resumed after the agent or its installer died; capped.
        group: its group's number once that is written.
        previous: the number of the group that was current when it began; None: none was.
        reason: why it is being turned back; a status's ``reason``.
        rollback: the DeploymentId of the group that is turned back to by hand; None: it is no rollback.
        quarantined: the digests that failed their trial in it.
    """

    id: str
    body_digest: str
    state: State = State.RECEIVED
    retained: bool = False
    attempt: int = 1
    group: int | None = None
    previous: int | None = None
    reason: dict[str, str] | None = None
    warnings: tuple[str, ...] = ()
    rollback: str | None = None
    quarantined: tuple[str, ...] = ()


@dataclass(slots=True)
class Journal:
    """The journal's contents; changed on the agent's thread only, written by `JournalFile`.

    Attributes:
        floor: the highest sequence number committed; a document must have a higher one.
        statuses: the last status of each id, with its document's digest, oldest first.
        unreported: final statuses that may not have reached the spool or the broker.
        host_links: the links made outside the state directory, absolute.
        last_group: the highest number a group ever had; numbers are not used again.
        quarantine: what failed its trial here, see `quarantine`.
    """

    active: Record | None = None
    waiting: Record | None = None
    floor: int | None = None
    latest: Status | None = None
    statuses: dict[str, tuple[str, Status]] = field(default_factory=dict)
    unreported: list[Status] = field(default_factory=list)
    host_links: list[str] = field(default_factory=list)
    last_group: int = 0
    quarantine: list[Entry] = field(default_factory=list)

    def remember(self, digest: str, status: Status) -> None:
        """Keeps `status` as the answer for its id; the oldest ids are forgotten."""
        self.statuses.pop(status["deploymentId"], None)
        self.statuses[status["deploymentId"]] = (digest, status)
        while len(self.statuses) > MAX_REMEMBERED:
            del self.statuses[next(iter(self.statuses))]

    def encode(self) -> bytes:
        """The journal as JSON."""
        values = {
            "format": FORMAT,
            "active": asdict(self.active) if self.active else None,
            "waiting": asdict(self.waiting) if self.waiting else None,
            "floor": self.floor,
            "latest": self.latest,
            "statuses": [[digest, status] for digest, status in self.statuses.values()],
            "unreported": self.unreported,
            "host_links": self.host_links,
            "last_group": self.last_group,
            "quarantine": self.quarantine,
        }
        return json.dumps(values, separators=(",", ":")).encode()


def decode(data: bytes) -> Journal:
    """The journal that `encode` wrote.

    Raises:
        ValueError, KeyError, TypeError: it did not write these bytes.
    """
    values = json.loads(data)
    if values["format"] != FORMAT:
        raise ValueError(f"the journal's format is {values['format']}, this version reads {FORMAT}")
    return Journal(
        active=_record(values["active"]),
        waiting=_record(values["waiting"]),
        floor=values["floor"],
        latest=values["latest"],
        statuses={status["deploymentId"]: (digest, status) for digest, status in values["statuses"]},
        unreported=list(values["unreported"]),
        host_links=list(values["host_links"]),
        last_group=int(values["last_group"]),
        quarantine=list(values.get("quarantine", ())),  # added after the first journals were written
    )


def _record(values: dict[str, Any] | None) -> Record | None:
    if values is None:
        return None
    tuples = {name: tuple(values.get(name, ())) for name in ("warnings", "quarantined")}
    record = Record(**{**values, "state": State(values["state"]), **tuples})
    if record.state in FINAL:
        raise ValueError(f"the deployment {record.id} is {record.state.value} and under way")
    return record


class JournalFile:
    """Reads and writes the journal and the documents it speaks of. All methods block; any thread, one at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "journal.json"
        self._bodies = directory / "documents"

    def load(self) -> Journal:
        """The journal; an empty one where there is none or it cannot be read, which is then set aside."""
        self._bodies.mkdir(parents=True, exist_ok=True)
        try:
            return decode(self._file.read_bytes())
        except FileNotFoundError:
            return Journal()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            aside = self._file.with_name(f"journal.damaged-{time.time_ns()}.json")
            self._file.rename(aside)
            logger.error("the deployments' journal cannot be read (%r); it is set aside as %s", error, aside)
            return Journal()

    def save(self, data: bytes) -> None:
        """Replaces the journal with what `Journal.encode` gave; durable at return."""
        durable.write(self._file, data)

    def add_body(self, digest: str, body: bytes) -> None:
        """Keeps a document, with the signatures that it came with last; durable at return, idempotent."""
        path = self._bodies / digest
        if not (path.exists() and path.read_bytes() == body):
            durable.write(path, body)

    def body(self, digest: str) -> bytes:
        """A document that was added.

        Raises:
            OSError: it is not there.
        """
        return (self._bodies / digest).read_bytes()

    def prune(self, keep: set[str]) -> None:
        """Removes the documents whose digests are not in `keep`."""
        for path in self._bodies.iterdir():
            if path.name not in keep:
                path.unlink(missing_ok=True)
