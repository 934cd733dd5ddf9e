"""Archives in any S3. What servers get wrong is not trusted: every answer's ETag, range and size are looked at."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

import botocore.exceptions as errors
import urllib3.exceptions
from botocore.config import Config

from agent.deployment.sources import Stream, aws, changed, content_range, strong
from agent.errors import AgentError, RejectedError

CHUNK_BYTES: Final = 1024 * 1024
BROKEN: Final = (
    errors.HTTPClientError, errors.ConnectionError, errors.IncompleteReadError, errors.FlexibleChecksumError,
    urllib3.exceptions.HTTPError, OSError,
)  # fmt: skip
MISSING: Final = ("NoSuchBucket", "NoSuchKey", "NoSuchVersion", "404", "NotFound")
AWS: Final = "https://s3.amazonaws.com"
KMS_KEY: Final = re.compile(r"arn:aws[a-z-]*:kms:[^\s,)]+")


class S3Archive:
    """An object of a bucket.

    Args:
        uri: ``s3://bucket/key``.
        stall_s: how long nothing may come before the connection is given up, seconds.
        region: where its bucket is; None: as boto3 is set.
    """

    def __init__(self, uri: str, stall_s: float, region: str | None = None) -> None:
        self.name = uri
        self._stall_s = stall_s
        self._region = region
        self._bucket, _, self._key = uri.removeprefix("s3://").partition("/")

    def open(self, start: int, etag: str | None, known: str | None) -> Stream | None:
        """See `ArchiveSource.open`; one GetObject."""
        request = {"Bucket": self._bucket, "Key": self._key}
        if start and etag:
            request |= {"Range": f"bytes={start}-", "IfMatch": etag}
        elif known:
            request["IfNoneMatch"] = known
        try:
            answer = client(self._stall_s, self._region).get_object(**request)
        except errors.ClientError as error:
            if aws.code_of(error) in ("304", "NotModified"):
                return None
            raise self._refusal(error) from error
        except (errors.BotoCoreError, ValueError, OSError) as error:
            raise aws.failure(self.name, error) from error
        return self._stream(answer, start, etag, known)

    def _stream(self, answer: dict[str, Any], start: int, etag: str | None, known: str | None) -> Stream | None:
        found = strong(answer.get("ETag"))
        begin, total = content_range(answer.get("ContentRange"), int(answer["ContentLength"]))
        if known and found == known and not start:  # a server that ignores If-None-Match
            answer["Body"].close()
            return None
        if begin and (begin != start or found != etag):  # one that ignores If-Match
            answer["Body"].close()
            raise changed(f"{self.name} was replaced while it was fetched")
        return Stream(begin, total, found, self._chunks(answer["Body"]))

    def _chunks(self, body: Any) -> Iterator[bytes]:
        # As much as is there, at once: StreamingBody.read waits for all that it is asked for, so that a connection
        # which drips would never look slow, and one that stalls would lose what came.
        read = body._raw_stream.read1
        try:
            while chunk := read(CHUNK_BYTES):
                yield chunk
        except BROKEN as error:
            raise aws.unreachable(self.name, error) from error
        finally:
            body.close()

    def _refusal(self, error: errors.ClientError) -> AgentError:
        """What the server's answer means for whoever wrote the document."""
        code, status, text = aws.code_of(error), aws.status_of(error), aws.text_of(error)
        if code in ("412", "PreconditionFailed", "416", "InvalidRange"):
            return changed(f"{self.name} was replaced while it was fetched")
        if code in MISSING:
            what = f"the bucket {self._bucket}" if code == "NoSuchBucket" else self.name
            return RejectedError("SOURCE_NOT_FOUND", f"there is no {what}", "Check the S3Uri and AWS_ENDPOINT_URL_S3.")
        if "server side encryption" in text.lower().replace("-", " "):
            remedy = "Store it with SSE-S3 or SSE-KMS; Greengrass V1 refuses SSE-C too."
            return RejectedError("SOURCE_ENCRYPTED", f"{self.name} is encrypted with a customer's own key", remedy)
        if common := aws.common_refusal(self.name, error):
            return common
        if status in (401, 403):
            return self._denied(text)
        remedy = "Check the S3Uri, the bucket's region and AWS_ENDPOINT_URL_S3."
        return RejectedError("SOURCE_REFUSED", f"{self.name}: the server answered {code} ({text})", remedy)

    def _denied(self, text: str) -> AgentError:
        if "kms:" in text.lower():  # SSE-KMS: the object may be read, but not the key that it is encrypted with
            key = KMS_KEY.search(text)
            return aws.denied(self.name, text, "kms:Decrypt", key[0] if key else "the ARN of its KMS key")
        partition = client(self._stall_s, self._region).meta.partition
        arn = f"arn:{partition}:s3:::{self._bucket}"
        more = f' (and "s3:ListBucket" on "{arn}", without which a missing object looks like this too)'
        return aws.denied(self.name, text, "s3:GetObject", f"{arn}/{self._key}", more)


@cache
def client(stall_s: float, region: str | None) -> Any:
    """The one client; a server other than AWS is asked by path, as few have a host name for each bucket."""
    by_path = not _is_aws(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or AWS)
    client = _new_client(stall_s, region, by_path=by_path)
    if not by_path and not _is_aws(client.meta.endpoint_url):  # one of boto3's files names another server
        client = _new_client(stall_s, region, by_path=True)
    return client


def _new_client(stall_s: float, region: str | None, *, by_path: bool) -> Any:
    """A client; it takes 0.1 s and more to make one."""
    config = aws.config(stall_s).merge(Config(signature_version="s3v4"))
    if by_path:
        config = config.merge(Config(s3={"addressing_style": "path"}))
    return aws.session().client("s3", region_name=region, config=config)


def _is_aws(url: str) -> bool:
    return (urlsplit(url).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
