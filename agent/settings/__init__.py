"""What topics.yaml says, as one frozen value; `agent.settings.reader.load` reads it.

The values are for everybody and import nothing; the reader, which needs YAML and checks with agent.routing, is only for
the commands.
"""

from agent.settings.values import (
    EMBEDDED,
    AnswerLimits,
    AwsRole,
    Caps,
    CaptureLimits,
    FetchLimits,
    Link,
    Policy,
    Quotas,
    Retention,
    Settings,
    SpoolClass,
    SpoolLimits,
    Subscription,
    Topics,
    TrustedKey,
)

__all__ = [
    "EMBEDDED",
    "AnswerLimits",
    "AwsRole",
    "Caps",
    "CaptureLimits",
    "FetchLimits",
    "Link",
    "Policy",
    "Quotas",
    "Retention",
    "Settings",
    "SpoolClass",
    "SpoolLimits",
    "Subscription",
    "Topics",
    "TrustedKey",
]
