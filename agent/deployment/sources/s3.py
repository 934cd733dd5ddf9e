"""Archives in any S3. The only module that imports boto3, and only the installer's process imports it.

boto3's own variables and files say where the server is and who we are. Retries are not botocore's but `download`'s,
which knows how far it has come. What servers get wrong is not trusted: every answer's ETag and range are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

import boto3
import botocore.exceptions as errors
import urllib3.exceptions
from botocore.config import Config

from agent.deployment.sources import Stream, content_range, strong
from agent.errors import AgentError, ConfigError, RejectedError, TransientError

CHUNK_BYTES: Final = 128 * 1024  # read waits for all of it: so much may be lost with a connection that stalls
CONNECT_TIMEOUT_S: Final = 10
READ_TIMEOUT_S: Final = 20  # a stalled connection is given up
BROKEN: Final = (
    errors.HTTPClientError, errors.ConnectionError, errors.IncompleteReadError, errors.FlexibleChecksumError,
    urllib3.exceptions.HTTPError, OSError,
)  # fmt: skip
MISSING: Final = ("NoSuchBucket", "NoSuchKey", "NoSuchVersion", "404", "NotFound")
WHO: Final = (
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "InvalidClientTokenId",
    "TokenRefreshRequired", "RequestTimeTooSkewed", "AuthorizationHeaderMalformed", "InvalidSecurity", "NotSignedUp",
    "AuthFailure",
)  # fmt: skip
WAIT: Final = (
    "SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded", "InternalError",
)  # fmt: skip


class S3Archive:
    """An object of a bucket.

    Args:
        uri: ``s3://bucket/key``.
    """

    def __init__(self, uri: str) -> None:
        self.name = uri
        self._bucket, _, self._key = uri.removeprefix("s3://").partition("/")

    def open(self, start: int, etag: str | None, known: str | None) -> Stream | None:
        """See `ArchiveSource.open`; one GetObject."""
        request = {"Bucket": self._bucket, "Key": self._key}
        if start and etag:
            request |= {"Range": f"bytes={start}-", "IfMatch": etag}
        elif known:
            request["IfNoneMatch"] = known
        try:
            answer = _client().get_object(**request)
        except errors.ClientError as error:
            if _code(error) in ("304", "NotModified"):
                return None
            raise self._refusal(error) from error
        except (errors.BotoCoreError, ValueError, OSError) as error:
            raise self._failure(error) from error
        return self._stream(answer, start, etag, known)

    def _stream(self, answer: dict[str, Any], start: int, etag: str | None, known: str | None) -> Stream | None:
        found = strong(answer.get("ETag"))
        begin, total = content_range(answer.get("ContentRange"), int(answer["ContentLength"]))
        if known and found == known and not start:  # a server that ignores If-None-Match
            answer["Body"].close()
            return None
        if begin and (begin != start or found != etag):  # one that ignores If-Match
            answer["Body"].close()
            raise _changed(self.name)
        return Stream(begin, total, found, self._chunks(answer["Body"]))

    def _chunks(self, body: Any) -> Iterator[bytes]:
        try:
            while chunk := body.read(CHUNK_BYTES):
                yield chunk
        except BROKEN as error:
            raise _unreachable(self.name, error) from error
        finally:
            body.close()

    def _refusal(self, error: errors.ClientError) -> AgentError:
        """What the server's answer means for whoever wrote the document."""
        code = _code(error)
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        text = str(error.response.get("Error", {}).get("Message", ""))[:200]
        if code in ("412", "PreconditionFailed", "416", "InvalidRange"):
            return _changed(self.name)
        if code in MISSING:
            what = f"the bucket {self._bucket}" if code == "NoSuchBucket" else self.name
            return RejectedError("SOURCE_NOT_FOUND", f"there is no {what}", "Check the S3Uri and AWS_ENDPOINT_URL_S3.")
        if code in WHO:
            return _credentials(self.name, f"{code}: {text}")
        if "server side encryption" in text.lower().replace("-", " "):
            remedy = "Store it with SSE-S3 or SSE-KMS; Greengrass V1 refuses SSE-C too."
            return RejectedError("SOURCE_ENCRYPTED", f"{self.name} is encrypted with a customer's own key", remedy)
        if status in (401, 403):
            return self._denied(text)
        if status >= 500 or status == 429 or code in WAIT:
            return TransientError("SOURCE_UNREACHABLE", f"{self.name}: the server answered {code} ({text})", RETRY)
        remedy = "Check the S3Uri, the bucket's region and AWS_ENDPOINT_URL_S3."
        return RejectedError("SOURCE_REFUSED", f"{self.name}: the server answered {code} ({text})", remedy)

    def _denied(self, text: str) -> AgentError:
        arn = f"arn:aws:s3:::{self._bucket}"
        remedy = (
            f'Allow this core\'s identity "s3:GetObject" on "{arn}/{self._key}" '
            f'(and "s3:ListBucket" on "{arn}", without which a missing object looks like this too).'
        )
        return RejectedError("SOURCE_ACCESS_DENIED", f"access to {self.name} is denied ({text})", remedy)

    def _failure(self, error: Exception) -> AgentError:
        """What it means that there was no answer."""
        kinds = (errors.NoCredentialsError, errors.PartialCredentialsError, errors.CredentialRetrievalError,
                 errors.ProfileNotFound, errors.TokenRetrievalError)  # fmt: skip
        if isinstance(error, kinds):
            return _credentials(self.name, str(error))
        if isinstance(error, errors.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            text = f"{self.name}: the server's certificate is not trusted"
            return RejectedError("SOURCE_UNTRUSTED", text, "Set AWS_CA_BUNDLE for the agent, or mend the server.")
        if isinstance(error, (errors.HTTPClientError, errors.ConnectionError, OSError)):
            return _unreachable(self.name, error)
        text = f"{self.name}: boto3 cannot be used as it is set ({error})"
        return ConfigError("SOURCE_SETTINGS", text, "Check AWS_ENDPOINT_URL_S3, AWS_REGION and the AWS files.")


RETRY: Final = "It is tried again with the next deployment."


def _unreachable(name: str, error: Exception) -> TransientError:
    remedy = "Check the network and AWS_ENDPOINT_URL_S3, then deploy again; what was fetched is kept."
    return TransientError("SOURCE_UNREACHABLE", f"{name} cannot be reached: {error}", remedy)


def _changed(name: str) -> TransientError:
    return TransientError("SOURCE_CHANGED", f"{name} was replaced while it was fetched", "Deploy again.")


def _credentials(name: str, why: str) -> AgentError:
    remedy = (
        "Give the agent's environment valid AWS credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a "
        "profile), and see that its clock is right."
    )
    return RejectedError("SOURCE_CREDENTIALS", f"{name}: the credentials are missing or not accepted ({why})", remedy)


def _code(error: errors.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@cache
def _client() -> Any:
    """The one client; a server other than AWS is asked by path, as few have a host name for each bucket."""
    session = boto3.Session()
    client = session.client("s3", config=_config())
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    if not host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        client = session.client("s3", config=_config().merge(Config(s3={"addressing_style": "path"})))
    return client


def _config() -> Config:
    return Config(
        connect_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S, retries={"total_max_attempts": 1},
        signature_version="s3v4", user_agent_extra="marram",
    )  # fmt: skip
