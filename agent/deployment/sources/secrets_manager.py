"""Secrets in AWS Secrets Manager: which versions there are, and what they hold, asked in the region of the ARN.

Endpoint and identity are boto3's own matter (`AWS_ENDPOINT_URL_SECRETS_MANAGER`, ..). What a secret holds is in what
these functions return and in nothing else: no error's text, no log.
"""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import Any, Final

import botocore.exceptions as errors

from agent.deployment.sources import aws
from agent.errors import AgentError, RejectedError

ENDPOINT: Final = "AWS_ENDPOINT_URL_SECRETS_MANAGER"
ATTEMPTS: Final = 4  # a secret is small: botocore's own retries do
STALL_S: Final = 20.0
NOT_THERE: Final = ("ResourceNotFoundException",)
DENIED: Final = ("AccessDenied", "AccessDeniedException")


def stages_of(arn: str) -> dict[str, list[str]] | None:
    """The staging labels of each version of a secret, by version id; None where we may not ask for them.

    Raises:
        AgentError: as `read_version`.
    """
    try:
        described = _client(arn).describe_secret(SecretId=arn)
    except errors.ClientError as error:
        if aws.code_of(error) in DENIED:
            return None
        raise _refusal(arn, None, error) from error
    except (errors.BotoCoreError, ValueError, OSError) as error:
        raise aws.failure(arn, error, ENDPOINT) from error
    if described.get("DeletedDate"):
        raise _deleted(arn)
    return {str(id): [str(each) for each in labels] for id, labels in described.get("VersionIdsToStages", {}).items()}


def read_version(arn: str, *, id: str | None = None, label: str | None = None) -> dict[str, Any]:
    """A version of a secret, by its id or by a staging label, as JSON holds it: V1's keys, bytes as base64.

    Raises:
        RejectedError: SECRET_NOT_FOUND, SECRET_STAGE_MISSING, SECRET_DELETED, SECRET_ACCESS_DENIED (with the IAM
            statement), SECRET_UNDECRYPTABLE, SECRET_REFUSED; SOURCE_CREDENTIALS.
        TransientError: SOURCE_UNREACHABLE.
    """
    asked = {"VersionId": id} if id is not None else {"VersionStage": label}
    try:
        found = _client(arn).get_secret_value(SecretId=arn, **asked)
    except errors.ClientError as error:
        raise _refusal(arn, label or id, error) from error
    except (errors.BotoCoreError, ValueError, OSError) as error:
        raise aws.failure(arn, error, ENDPOINT) from error
    version: dict[str, Any] = {
        "ARN": str(found.get("ARN", arn)),
        "Name": str(found.get("Name", "")),
        "VersionId": str(found.get("VersionId", "")),
        "VersionStages": [str(each) for each in found.get("VersionStages") or ()],
        "CreatedDate": int(found["CreatedDate"].timestamp() * 1000) if found.get("CreatedDate") else 0,
    }
    if found.get("SecretBinary") is not None:
        version["SecretBinary"] = base64.b64encode(found["SecretBinary"]).decode()
    else:
        version["SecretString"] = str(found.get("SecretString") or "")
    return version


def _refusal(arn: str, version: str | None, error: errors.ClientError) -> AgentError:
    code, text = aws.code_of(error), aws.text_of(error)
    if common := aws.common_refusal(arn, error):
        return common
    if code in NOT_THERE and version is not None and "secret value" in text.lower():
        return stage_missing(arn, version)
    if code in NOT_THERE:
        remedy = "Check the ARN, its region and account; a partial ARN without the six last characters may not do."
        return RejectedError("SECRET_NOT_FOUND", f"there is no secret {arn} ({text})", remedy)
    if code in DENIED or aws.status_of(error) in (401, 403):
        return _denied(arn, text)
    if code == "DecryptionFailure":
        remedy = f"Add this statement to the IAM policy of this core's identity: {_statement('kms:Decrypt', '*')}."
        return RejectedError("SECRET_UNDECRYPTABLE", f"KMS does not decrypt the secret {arn} for us ({text})", remedy)
    if code == "InvalidRequestException" and "delet" in text.lower():
        return _deleted(arn)
    return RejectedError("SECRET_REFUSED", f"{arn}: the server answered {code} ({text})", f"Check {ENDPOINT}.")


def stage_missing(arn: str, label: str, known: tuple[str, ...] = ()) -> RejectedError:
    """That no version of the secret has that label."""
    there = f"; its labels are {', '.join(known)}" if known else ""
    text = f"no version of the secret {arn} has the staging label {label}{there}"
    return RejectedError("SECRET_STAGE_MISSING", text, "Correct AdditionalStagingLabelsToDownload, or give it one.")


def _denied(arn: str, text: str) -> RejectedError:
    statement = _statement("secretsmanager:GetSecretValue", arn)
    remedy = f"Add this statement to the IAM policy of this core's identity: {statement}"
    if "kms" in text.lower():
        remedy += f"; and for the key that encrypts it: {_statement('kms:Decrypt', '*')}"
    return RejectedError("SECRET_ACCESS_DENIED", f"access to the secret {arn} is denied ({text})", f"{remedy}.")


def _statement(action: str, resource: str) -> str:
    return json.dumps({"Effect": "Allow", "Action": action, "Resource": resource})


def _deleted(arn: str) -> RejectedError:
    text = f"the secret {arn} is marked for deletion"
    return RejectedError("SECRET_DELETED", text, "Restore it (aws secretsmanager restore-secret), or name another.")


def _client(arn: str) -> Any:
    return _client_in(arn.split(":")[3])


@cache
def _client_in(region: str) -> Any:
    config = aws.config(STALL_S, attempts=ATTEMPTS)
    return aws.session().client("secretsmanager", region_name=region, config=config)
