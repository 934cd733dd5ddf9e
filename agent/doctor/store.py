"""Whether the S3 buckets can be reached that the policy lets models come from. Blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from agent.doctor.findings import Finding, failed, ok, warned
from agent.errors import AgentError
from agent.settings import AwsRole, Settings

SCHEME: Final = "s3://"


def buckets(settings: Settings) -> Iterator[Finding]:
    """Asks for each bucket that the policy names; one behind a wildcard cannot be asked for."""
    sources = settings.policy.sources
    for name in sorted({each[len(SCHEME) :].partition("/")[0] for each in sources if each.startswith(SCHEME)}):
        if "*" in name:
            yield ok(f"s3 {name}", "a pattern: which bucket it is, a deployment says")
        else:
            yield _asked(name, settings.aws)


def _asked(bucket: str, role: AwsRole | None) -> Finding:
    from agent.deployment.sources.s3_buckets import ask_for  # boto3: only where it is used

    try:
        endpoint, may_look = ask_for(bucket, role)
    except AgentError as error:
        return failed(f"s3 {bucket}", error.message, error.remedy, error.code)
    if may_look:
        return ok(f"s3 {bucket}", f"{endpoint} has it and lets us in")
    remedy = "A deployment needs no more than GetObject on the model; else look at the keys in the agent's environment."
    return warned(f"s3 {bucket}", f"{endpoint} answers, and these keys may not look into the bucket.", remedy)
