"""What the sources on AWS (or what speaks like it) share: the session, its settings, and what its errors mean.

boto3's own variables and files say where the servers are and who we are. Retries are not botocore's but `download`'s,
which knows how far it has come.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Final

import boto3
import botocore.exceptions as errors
import botocore.session
from botocore.config import Config
from botocore.credentials import CredentialProvider, RefreshableCredentials

from agent.deployment.sources.role import assumed, metadata_of
from agent.errors import AgentError, ConfigError, RejectedError, TransientError
from agent.settings import AwsRole

CONNECT_TIMEOUT_S: Final = 10
S3_ENDPOINT: Final = "AWS_ENDPOINT_URL_S3"
RETRY: Final = "It is tried again with the next deployment."
WHO: Final = (
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "InvalidClientTokenId",
    "TokenRefreshRequired", "RequestTimeTooSkewed", "AuthorizationHeaderMalformed", "InvalidSecurity", "NotSignedUp",
    "AuthFailure", "UnrecognizedClientException", "ExpiredTokenException", "InvalidSignatureException",
    "IncompleteSignature", "MissingAuthenticationToken", "MissingAuthenticationTokenException",
)  # fmt: skip
WAIT: Final = (
    "SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded", "InternalError",
)  # fmt: skip


@cache
def session() -> Any:
    """The one session: who we are is found out once. In a role, its credentials come before all others."""
    role = assumed()
    if role is None:
        return boto3.Session()
    inner = botocore.session.get_session()
    inner.get_component("credential_provider").insert_before("env", _RoleProvider(role))
    return boto3.Session(botocore_session=inner)


class _RoleProvider(CredentialProvider):
    """Credentials of a role alias; botocore asks again before they expire."""

    METHOD = "iot-role-alias"

    def __init__(self, role: AwsRole) -> None:
        super().__init__()
        self._role = role

    def load(self) -> Any:
        """Whoever asks first waits for the answer, and gets its error."""
        return RefreshableCredentials.create_from_metadata(
            metadata_of(self._role), refresh_using=lambda: metadata_of(self._role), method=self.METHOD
        )


def config(stall_s: float, *, attempts: int = 1) -> Config:
    """How clients of ours ask; `stall_s` is how long nothing may come."""
    return Config(
        connect_timeout=CONNECT_TIMEOUT_S, read_timeout=stall_s,
        retries={"total_max_attempts": attempts, "mode": "standard"}, signature_version="v4",
        user_agent_extra="marram",
    )  # fmt: skip


def code_of(error: errors.ClientError) -> str:
    """The server's own code."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: errors.ClientError) -> int:
    """The answer's HTTP status."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def text_of(error: errors.ClientError) -> str:
    """What the server says about it, not too long."""
    return str(error.response.get("Error", {}).get("Message", ""))[:300]


def common_refusal(name: str, error: errors.ClientError) -> AgentError | None:
    """What an answer means that every service gives; None where it is the service's own matter."""
    code, status, text = code_of(error), status_of(error), text_of(error)
    if code in WHO:
        return credentials(name, f"{code}: {text}")
    if status >= 500 or status == 429 or code in WAIT:
        return TransientError("SOURCE_UNREACHABLE", f"{name}: the server answered {code} ({text})", RETRY)
    return None


def failure(name: str, error: Exception, endpoint: str = S3_ENDPOINT) -> AgentError:
    """What it means that there was no answer at all; `endpoint` is the variable that says where to ask."""
    kinds = (errors.NoCredentialsError, errors.PartialCredentialsError, errors.CredentialRetrievalError,
             errors.ProfileNotFound, errors.TokenRetrievalError)  # fmt: skip
    if isinstance(error, kinds):
        return credentials(name, str(error))
    if isinstance(error, errors.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        text = f"{name}: the server's certificate is not trusted"
        return RejectedError("SOURCE_UNTRUSTED", text, "Set AWS_CA_BUNDLE for the agent, or mend the server.")
    if isinstance(error, (errors.HTTPClientError, errors.ConnectionError, OSError)):
        return unreachable(name, error, endpoint)
    text = f"{name}: boto3 cannot be used as it is set ({error})"
    return ConfigError("SOURCE_SETTINGS", text, f"Check {endpoint}, AWS_REGION and the AWS files.")


def denied(name: str, text: str, action: str, resource: str, more: str = "") -> AgentError:
    """That we may not, with the IAM statement that would allow it."""
    statement = json.dumps({"Effect": "Allow", "Action": action, "Resource": resource})
    remedy = f"Add this statement to the IAM policy of this core's identity: {statement}{more}."
    return RejectedError("SOURCE_ACCESS_DENIED", f"access to {name} is denied ({text})", remedy)


def unreachable(name: str, error: Exception, endpoint: str = S3_ENDPOINT) -> TransientError:
    """That the server does not answer, or no more."""
    remedy = f"Check the network and {endpoint}, then deploy again; what was fetched is kept."
    return TransientError("SOURCE_UNREACHABLE", f"{name} cannot be reached: {error}", remedy)


def credentials(name: str, why: str) -> AgentError:
    """That we are nobody, or somebody else than we say."""
    remedy = (
        "Give the agent's environment valid AWS credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a "
        "profile), and see that its clock is right."
    )
    return RejectedError("SOURCE_CREDENTIALS", f"{name}: the credentials are missing or not accepted ({why})", remedy)
