"""AWS credentials for a certificate: AWS IoT's credential provider gives them out for a role alias, over mutual TLS.

So a core needs no AWS keys of its own: what proves to AWS IoT Core who it is does so here too. For the processes that
speak with AWS: each says once, with `assume`, which role it is in; without, boto3's own variables and files count.

Source: AWS IoT Core developer guide, "Authorizing direct calls to AWS services using AWS IoT Core credential provider".
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from agent.errors import AgentError, RejectedError, TransientError
from agent.settings import AwsRole
from agent.trust.secret_files import loose
from agent.values import dataclass

TIMEOUT_S: Final = 20.0
MAX_BYTES: Final = 64 * 1024
RETRY: Final = "It is tried again with the next deployment."


@dataclass(slots=True)
class _Assumed:
    role: AwsRole | None = None


_assumed = _Assumed()


def assume(role: AwsRole | None) -> None:
    """The role of this process from now on; to be called before anything is asked of AWS."""
    _assumed.role = role


def assumed() -> AwsRole | None:
    """The role of this process."""
    return _assumed.role


def metadata_of(role: AwsRole) -> dict[str, str]:
    """New credentials, as botocore takes them: ``access_key``, ``secret_key``, ``token``, ``expiry_time``. Blocks.

    Raises:
        RejectedError: AWS_ROLE_REFUSED, AWS_ROLE_UNKNOWN, AWS_ROLE_CERTIFICATE, KEY_FILE_LOOSE.
        TransientError: AWS_ROLE_UNREACHABLE.
    """
    status, body = _asked(role, _tls(role))
    said = _message(body)
    if status == 200:
        return _read(role, body)
    if status == 404:
        text = f"{role.name}: AWS IoT knows no such role alias ({said})"
        raise RejectedError(
            "AWS_ROLE_UNKNOWN", text, "Correct aws.role_alias, or its region in aws.credential_endpoint."
        )
    if status >= 500 or status == 429:
        raise TransientError("AWS_ROLE_UNREACHABLE", f"{role.name}: the server answered HTTP {status} ({said})", RETRY)
    raise RejectedError("AWS_ROLE_REFUSED", f"{role.name}: refused with HTTP {status} ({said})", _policy(role))


def _policy(role: AwsRole) -> str:
    """What to add where: the certificate's policy, and the role's trust."""
    arn = f"arn:aws:iot:REGION:ACCOUNT:rolealias/{role.role_alias}"
    statement = json.dumps({"Effect": "Allow", "Action": "iot:AssumeRoleWithCertificate", "Resource": arn})
    return (
        f"Add this statement to the AWS IoT policy of the core's certificate: {statement}; attach the certificate to"
        f" the thing {role.thing}, and let the role trust credentials.iot.amazonaws.com (sts:AssumeRole)."
    )


def _tls(role: AwsRole) -> ssl.SSLContext:
    try:
        if problem := loose(Path(role.key)):
            raise RejectedError("KEY_FILE_LOOSE", f"The private key {problem}")
        context = ssl.create_default_context(cafile=role.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(role.cert, role.key, password=lambda: "")
    except (OSError, ValueError) as error:
        text = f"{role.name}: the certificate {role.cert} and its key cannot be used ({_why(error)})"
        raise RejectedError(
            "AWS_ROLE_CERTIFICATE", text, "Correct aws.cert and aws.key, or those of the link."
        ) from error
    return context


def _asked(role: AwsRole, context: ssl.SSLContext) -> tuple[int, bytes]:
    host, _, port = role.endpoint.partition(":")
    connection = http.client.HTTPSConnection(host, int(port or 443), timeout=TIMEOUT_S, context=context)
    try:
        path = f"/role-aliases/{quote(role.role_alias, safe='')}/credentials"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # why it closed is read below
            connection.request("GET", path, headers={"x-amzn-iot-thingname": role.thing, "User-Agent": "marram"})
        answer = connection.getresponse()
        return answer.status, answer.read(MAX_BYTES)
    except ssl.SSLCertVerificationError as error:
        text = f"{role.name}: the server's certificate is not trusted ({error.verify_message})"
        raise RejectedError("AWS_ROLE_CERTIFICATE", text, "Set aws.ca, or the device's clock.") from error
    except ssl.SSLError as error:
        text = f"{role.name}: the server does not take the certificate {role.cert} ({_why(error)})"
        remedy = "See that it is active in AWS IoT Core and has not expired."
        raise RejectedError("AWS_ROLE_CERTIFICATE", text, remedy) from error
    except (OSError, http.client.HTTPException) as error:
        remedy = "Check the network and aws.credential_endpoint, then deploy again."
        raise TransientError("AWS_ROLE_UNREACHABLE", f"{role.name} cannot be reached: {_why(error)}", remedy) from error
    finally:
        connection.close()


def _read(role: AwsRole, body: bytes) -> dict[str, str]:
    names = {"access_key": "accessKeyId", "secret_key": "secretAccessKey", "token": "sessionToken",
             "expiry_time": "expiration"}  # fmt: skip
    try:
        given = json.loads(body)["credentials"]
        return {ours: str(given[theirs]) for ours, theirs in names.items()}
    except (ValueError, KeyError, TypeError) as error:
        text = f"{role.name}: the answer holds no credentials"
        raise AgentError("AWS_ROLE_REFUSED", text, "Check aws.credential_endpoint: who answers there?") from error


def _message(body: bytes) -> str:
    """What a refusal says."""
    try:
        values: Any = json.loads(body)
        return str(values["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return "it gives no reason"


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error) or type(error).__name__
