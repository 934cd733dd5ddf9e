"""Reads a document's secrets: V1's shape and rules for what lies in AWS Secrets Manager. Pure; notes every problem."""

from __future__ import annotations

from typing import Final

from agent.deployment.definition import CURRENT, SecretResource
from agent.deployment.fields import Fields, shown

SECRET: Final = "SecretsManagerSecretResourceData"
ARN: Final = r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]{1,32}:[0-9]{12}:secret:[A-Za-z0-9/_+=.@-]{1,519}"
ARN_WORDS: Final = 'a secret\'s ARN such as "arn:aws:secretsmanager:eu-west-1:123456789012:secret:NAME-AbCdEf"'
MAX_LABELS: Final = 20  # Secrets Manager: labels a version
MAX_LABEL: Final = 256  # Secrets Manager: characters of a label


def read_secret(id: str, name: str, data: Fields) -> SecretResource | None:
    """The secret that the member `data` of a ResourceDataContainer names."""
    arn = data.text("ARN", required=True, pattern=ARN, what=ARN_WORDS)
    labels: dict[str, None] = {}
    for value, where in data.items("AdditionalStagingLabelsToDownload", MAX_LABELS):
        if isinstance(value, str) and 0 < len(value) <= MAX_LABEL and value.isprintable():
            labels[value] = None
        else:
            data.problems.note("BAD_DOCUMENT", where, f"must be a staging label, not {shown(value)}")
    data.done()
    labels.pop(CURRENT, None)  # is always fetched
    return SecretResource(id, name, arn, tuple(labels)) if arn else None
