"""An object of an S3 server whose address and credentials stand in the environment, asked without boto3.

To load boto3 and make a client takes 0.4 s and 42 MB, more than all the rest of a small deployment. So what is plain is
asked plainly: one GET with Signature Version 4. Whatever else it is (other settings, any answer but the object, any
error), boto3 asks again and has the last word: this module knows no error of its own but a connection that breaks.

Source of the signature: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final
from urllib.parse import quote, urlsplit

from agent.deployment.sources import ArchiveSource, Stream, changed, content_range, strong
from agent.errors import TransientError

CHUNK_BYTES: Final = 1024 * 1024
ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
# With one of these, boto3 would do something that is not done here.
OTHERWISE: Final = (
    "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy",
)  # fmt: skip
UNSIGNED: Final = "UNSIGNED-PAYLOAD"


class PlainS3Archive:
    """An object of a bucket.

    Args:
        uri: ``s3://bucket/key``.
        stall_s: how long nothing may come before the connection is given up, seconds.
        full: makes the source that is asked where this one does not suffice.
    """

    def __init__(self, uri: str, stall_s: float, full: Callable[[], ArchiveSource]) -> None:
        self.name = uri
        self._stall_s = stall_s
        self._make_full = full
        self._full: ArchiveSource | None = None

    def open(self, start: int, etag: str | None, known: str | None) -> Stream | None:
        """See `ArchiveSource.open`; one GET."""
        if self._full is None:
            try:
                return self._open(start, etag, known)
            except (OSError, http.client.HTTPException, _UnusualError, ValueError):
                self._full = self._make_full()
        return self._full.open(start, etag, known)

    def _open(self, start: int, etag: str | None, known: str | None) -> Stream | None:
        headers = {}
        if start and etag:
            headers = {"Range": f"bytes={start}-", "If-Match": etag}
        elif known:
            headers = {"If-None-Match": known}
        answer = self._get(headers)
        if answer.status == 304:
            answer.close()
            return None
        length = answer.getheader("Content-Length") or ""
        if answer.status not in (200, 206) or not length.isdecimal():
            answer.close()
            raise _UnusualError
        found = strong(answer.getheader("ETag"))
        begin, total = content_range(answer.getheader("Content-Range"), int(length))
        if known and found == known and not start:  # a server that ignores If-None-Match
            answer.close()
            return None
        if begin and (begin != start or found != etag):  # one that ignores If-Match
            answer.close()
            raise changed(f"{self.name} was replaced while it was fetched")
        return Stream(begin, total, found, self._chunks(answer))

    def _get(self, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        endpoint = urlsplit(next(filter(None, map(os.environ.get, ENDPOINTS)), ""))
        if endpoint.path.strip("/") or not endpoint.hostname:
            raise _UnusualError
        path = "/" + quote(self.name.removeprefix("s3://"), safe="/-._~")
        connection = http.client.HTTPConnection(endpoint.hostname, endpoint.port, timeout=self._stall_s)
        signed = signature_headers(endpoint.netloc, path, os.environ, time.time())
        connection.request("GET", path, headers={**signed, **headers, "User-Agent": "marram"})
        return connection.getresponse()

    def _chunks(self, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        try:
            while chunk := answer.read1(CHUNK_BYTES):  # what came is not lost with a connection that stalls
                yield chunk
        except (OSError, http.client.HTTPException) as error:
            remedy = "Check the network and AWS_ENDPOINT_URL_S3, then deploy again; what was fetched is kept."
            text = f"{self.name} cannot be reached any more: {error or type(error).__name__}"
            raise TransientError("SOURCE_UNREACHABLE", text, remedy) from error
        finally:
            answer.close()


class _UnusualError(Exception):
    """Boto3's matter."""


def suffices(environment: Mapping[str, str]) -> bool:
    """Whether the environment alone says where the server is, over http as in a plant, and who we are."""
    endpoint = next(filter(None, map(environment.get, ENDPOINTS)), "")
    named = all(environment.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    return endpoint.startswith("http://") and named and not any(environment.get(name) for name in OTHERWISE)


def signature_headers(host: str, path: str, environment: Mapping[str, str], now_s: float) -> dict[str, str]:
    """The headers that sign a GET of `path`, which is URL-encoded. Pure."""
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1"
    when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    headers = {"host": host, "x-amz-content-sha256": UNSIGNED, "x-amz-date": when}
    if token := environment.get("AWS_SESSION_TOKEN"):
        headers["x-amz-security-token"] = token
    names = ";".join(headers)
    lines = [f"{name}:{value}" for name, value in headers.items()]
    request = "\n".join(["GET", path, "", *lines, "", names, UNSIGNED])
    scope = f"{when[:8]}/{region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", when, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{environment['AWS_SECRET_ACCESS_KEY']}".encode()
    for part in (when[:8], region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"{environment['AWS_ACCESS_KEY_ID']}/{scope}"
    value = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}"
    return {**headers, "Authorization": value}
