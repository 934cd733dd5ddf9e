"""Signed URLs that expire while they are fetched from: the document is asked for again, and the fetch goes on.

AWS IoT signs the URLs in a job's document each time that it gives the document out, for a minute to an hour. So the
channel by which the document came is asked for it anew; what was fetched stays, as it is named by the URL without its
signature. That goes on as long as each fresh URL brings something.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from agent.deployment.definition import HttpsSource, Source
from agent.deployment.document import read_accepted
from agent.deployment.identity import identity_of
from agent.deployment.journal import Record
from agent.deployment.store import Store
from agent.deployment.threads import in_thread

EXPIRED: Final = "SOURCE_EXPIRED"
log = logging.getLogger(__name__)


# Gives a document as its channel gives it out now, and its identity as for `Deployer.receive`.
Ask = Callable[[str], Awaitable[tuple[bytes, bytes | None] | None]]


class FreshUrls:
    """For one fetch after the other.

    Args:
        ask: gives the document of a deployment's id anew; None where its channel cannot.
    """

    def __init__(self, store: Store, ask: Ask | None) -> None:
        self._store = store
        self._ask = ask
        self._brought: dict[str, list[str]] = {}  # by source: ETag and digest of what is an object already
        self._progress = 0
        self._renewed_at = -1

    def begin(self) -> None:
        """Another deployment's fetch begins."""
        self._brought.clear()
        self._progress, self._renewed_at = 0, -1

    def heard(self, event: dict[str, Any]) -> None:
        """Takes the installer's events, to know what came of the last URLs."""
        if event["event"] == "progress":
            self._progress += 1
        elif event["event"] == "object" and event["etag"]:
            self._brought[event["source"]] = [event["etag"], event["hex"]]

    async def into(self, job: dict[str, Any], record: Record) -> bool:
        """Puts fresh URLs into an installer's job; returns whether it is worth another run."""
        if self._ask is None or self._progress == self._renewed_at:
            return False
        self._renewed_at = self._progress
        log.info("deployment %s: a signed URL has expired; asking for the document anew", record.id)
        anew = await self._ask(record.id)
        if anew is None:
            return False
        body, identity = anew
        digest, _ = await in_thread(identity_of, body, identity)
        if digest != record.body_digest:
            log.warning("deployment %s: its document is another one now", record.id)
            return False
        await in_thread(self._store.journal.add_body, digest, body)
        urls = await in_thread(_urls_of, body)
        for archive in job["archives"]:
            archive["url"] = urls.get((archive["role"], archive["id"]), archive["url"])
            archive["known"] = self._brought.get(archive["source"], archive["known"])
        return True


def _urls_of(body: bytes) -> dict[tuple[str, str], str]:
    """The URLs of a document's https sources, by role and Id."""
    deployment = read_accepted(body)
    named: list[tuple[tuple[str, str], Source | None]] = [(("resource", r.id), r.source) for r in deployment.resources]
    named += [(("code", function.id), function.code) for function in deployment.functions]
    return {name: source.url for name, source in named if isinstance(source, HttpsSource)}
