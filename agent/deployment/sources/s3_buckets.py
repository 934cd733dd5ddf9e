"""Whether an S3 bucket can be reached with the credentials of this process. Blocks; for the command line."""

from __future__ import annotations

from typing import Final

import botocore.exceptions as errors

from agent.deployment.sources import aws, role, s3
from agent.settings import AwsRole

STALL_S: Final = 10.0
FORBIDDEN: Final = 403


def ask_for(bucket: str, assumed: AwsRole | None) -> tuple[str, bool]:
    """The server that was asked, and whether it lets us look into the bucket; a GetObject may be allowed without.

    Raises:
        AgentError: it cannot be reached, has no such bucket, or does not take the credentials.
    """
    role.assume(assumed)
    client = s3.client(STALL_S, None)
    endpoint: str = client.meta.endpoint_url
    try:
        client.head_bucket(Bucket=bucket)
    except errors.ClientError as error:
        if aws.status_of(error) == FORBIDDEN:
            return endpoint, False
        raise aws.failure(f"s3://{bucket}", error) from error
    except errors.BotoCoreError as error:
        raise aws.failure(f"s3://{bucket}", error) from error
    return endpoint, True
