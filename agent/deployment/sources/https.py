"""Archives behind https URLs, signed ones too. A URL's query is a secret: it is in no message and no file.

The certificates that are trusted are the system's, or those of SSL_CERT_FILE. A redirect is followed where the policy
allows it.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import cache
from typing import Final
from urllib.parse import parse_qs, urljoin, urlsplit

from agent.deployment.sources import Stream, changed, content_range, strong
from agent.errors import AgentError, RejectedError, TransientError

CHUNK_BYTES: Final = 1024 * 1024
MAX_REDIRECTS: Final = 5
REFUSAL_BYTES: Final = 4096
REDIRECTS: Final = (301, 302, 303, 307, 308)
WAIT: Final = (408, 425, 429)


class HttpsArchive:
    """What an https URL gives.

    Args:
        allowed: whether the policy allows a source's name; asked about each URL that a redirect leads to.
        stall_s: to connect, and how long nothing may come before the connection is given up, seconds.
    """

    def __init__(self, url: str, allowed: Callable[[str], bool], stall_s: float) -> None:
        self.name = url.partition("?")[0]
        self._url = url
        self._allowed = allowed
        self._stall_s = stall_s

    def open(self, start: int, etag: str | None, known: str | None) -> Stream | None:
        """See `ArchiveSource.open`; one GET, and one more for each redirect."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "marram"}
        if start and etag:
            headers |= {"Range": f"bytes={start}-", "If-Range": etag, "If-Match": etag}
        elif known:
            headers["If-None-Match"] = known
        try:
            answer = self._get(self._url, headers, MAX_REDIRECTS)
        except ssl.SSLCertVerificationError as error:
            text = f"{self.name}: the server's certificate is not trusted ({error.verify_message})"
            raise RejectedError(
                "SOURCE_UNTRUSTED", text, "Set SSL_CERT_FILE for the agent, or mend the server."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        if answer.status == 304:
            return None
        return self._stream(answer, start, etag, known)

    def _get(self, url: str, headers: dict[str, str], redirects: int) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=self._stall_s, context=_context()
        )
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), headers=headers)
        answer = connection.getresponse()
        place = answer.getheader("Location")
        if answer.status not in REDIRECTS or not place:
            return answer
        answer.close()
        target = urljoin(url, place)
        name = target.partition("?")[0]
        if not target.startswith("https://") or not self._allowed(name):
            text = f"{self.name} redirects to {name}, which policy.sources does not allow"
            raise RejectedError("NOT_ALLOWED", text, "Name that place, or allow it in topics.yaml.")
        if not redirects:
            raise RejectedError("SOURCE_REFUSED", f"{self.name} redirects without end", "Check the Url.")
        return self._get(target, headers, redirects - 1)

    def _stream(
        self, answer: http.client.HTTPResponse, start: int, etag: str | None, known: str | None
    ) -> Stream | None:
        if answer.status not in (200, 206):
            said = _head_of(answer)
            raise self._refusal(answer.status, said)
        length = answer.getheader("Content-Length")
        if length is None or not length.isdecimal():
            text = f"{self.name}: the server does not say how long the archive is"
            raise RejectedError("SOURCE_REFUSED", text, "Use a server that sends a Content-Length.")
        found = strong(answer.getheader("ETag"))
        begin, total = content_range(answer.getheader("Content-Range"), int(length))
        if known and found == known and not start:
            answer.close()
            return None
        if begin and (begin != start or found != etag):
            answer.close()
            raise changed(f"{self.name} was replaced while it was fetched")
        return Stream(begin, total, found, self._chunks(answer))

    def _chunks(self, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        try:
            while chunk := answer.read1(CHUNK_BYTES):  # what came is not lost with a connection that stalls
                yield chunk
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            answer.close()

    def _refusal(self, status: int, said: str) -> AgentError:
        if status in (412, 416):
            return changed(f"{self.name} was replaced while it was fetched")
        if status in (404, 410):
            return RejectedError("SOURCE_NOT_FOUND", f"there is no {self.name}", "Check the Url.")
        if status in (400, 401, 403) and ("expired" in said.lower() or has_expired(self._url, time.time())):
            remedy = "Send a deployment with a new one; what was fetched is kept."
            return RejectedError("SOURCE_EXPIRED", f"the signed Url of {self.name} has expired", remedy)
        if status in (401, 403):
            remedy = "Let the server allow it, or send a deployment with a signed Url."
            return RejectedError("SOURCE_ACCESS_DENIED", f"access to {self.name} is denied (HTTP {status})", remedy)
        if status >= 500 or status in WAIT:
            remedy = "Check the server, then deploy again."
            return TransientError("SOURCE_UNREACHABLE", f"{self.name}: the server answered HTTP {status}", remedy)
        return RejectedError("SOURCE_REFUSED", f"{self.name}: the server answered HTTP {status}", "Check the Url.")

    def _unreachable(self, error: Exception) -> TransientError:
        kind = "no answer in time" if isinstance(error, (TimeoutError, socket.timeout)) else str(error) or repr(error)
        remedy = "Check the network and the server, then deploy again; what was fetched is kept."
        return TransientError("SOURCE_UNREACHABLE", f"{self.name} cannot be reached: {kind}", remedy)


def has_expired(url: str, now_s: float) -> bool:
    """Whether a signed URL says itself that its time is over (AWS signature versions 2 and 4)."""
    query = {name: values[-1] for name, values in parse_qs(urlsplit(url).query).items()}
    try:
        if "X-Amz-Date" in query:
            begun = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
            return now_s > begun.timestamp() + int(query["X-Amz-Expires"])
        return now_s > int(query["Expires"])
    except (LookupError, ValueError, OverflowError):
        return False


def _head_of(answer: http.client.HTTPResponse) -> str:
    """What a refusal says first, for a look at it; it is not repeated, as it may hold the URL."""
    try:
        return answer.read1(REFUSAL_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        answer.close()


@cache
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()
