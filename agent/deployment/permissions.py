"""What this core's policy allows of a deployment, and what its quotas leave room for. Pure.

Each refusal names the line of topics.yaml that would allow it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from agent.deployment.definition import Deployment, Function, LocalResource, S3Source, SecretResource, Source
from agent.deployment.fields import FORBIDDEN, Problems
from agent.settings import Policy, Quotas


def check_permitted(deployment: Deployment, policy: Policy, signed_by: str | None, problems: Problems) -> None:
    """Notes all that the policy does not allow, each with the line of topics.yaml that would.

    Args:
        signed_by: the id of the trusted key whose signature was verified, or None.
    """
    _check_sources(deployment, policy, problems)
    _check_local(deployment.local, policy, problems)
    _check_secrets(deployment.secrets, policy, problems)
    _check_code(deployment.functions, policy, signed_by, problems)
    _check_users(deployment.functions, policy, problems)
    _check_quotas(deployment, policy.quotas, problems)


def _check_sources(deployment: Deployment, policy: Policy, problems: Problems) -> None:
    for resource in deployment.resources:
        _check_source(resource.source, f"the resource {resource.id}", policy, problems)
        destination = resource.destination
        if destination is not None and not any(is_below(destination, root) for root in policy.destinations):
            text = f"policy.destinations of this core does not hold {destination}: only its functions see it there"
            problems.warn(f"the resource {resource.id}", text)
    for function in deployment.functions:
        if function.code is not None:
            _check_source(function.code, f"the function {function.id}", policy, problems)


def _check_source(source: Source, where: str, policy: Policy, problems: Problems) -> None:
    for text in forbidden(source, policy):
        problems.note(FORBIDDEN, where, f"its source {source.name} {text}")


def forbidden(source: Source, policy: Policy) -> Iterator[str]:
    """Why a policy does not allow a source, each with the line to add to topics.yaml."""
    name = source.name
    if not any(allows(pattern, name) for pattern in policy.sources):
        yield f'is not allowed here; add to policy in topics.yaml: sources: ["{_widened(name)}"]'
    bucket = name.removeprefix("s3://").partition("/")[0] if isinstance(source, S3Source) else ""
    if "." in bucket and not policy.allow_dotted_buckets:
        yield (
            f"has a dot in its bucket's name ({bucket}), which Greengrass V1 refuses, as TLS host names do not go with"
            " it; rename the bucket, or add to policy in topics.yaml: allow_dotted_buckets: true"
        )


def _check_local(resources: tuple[LocalResource, ...], policy: Policy, problems: Problems) -> None:
    for resource in resources:
        if not any(allows(pattern, resource.source) for pattern in policy.local):
            line = f'local: ["{resource.source}"]'
            text = f"its source {resource.source} is not allowed here; add to policy in topics.yaml: {line}"
            problems.note(FORBIDDEN, f"the resource {resource.id}", text)


def _check_secrets(secrets: tuple[SecretResource, ...], policy: Policy, problems: Problems) -> None:
    for secret in secrets:
        if not any(allows(pattern, secret.arn) for pattern in policy.sources):
            line = f'sources: ["{secret.arn}"]'
            text = f"the secret {secret.arn} is not allowed here; add to policy in topics.yaml: {line}"
            problems.note(FORBIDDEN, f"the resource {secret.id}", text)


def _check_code(functions: tuple[Function, ...], policy: Policy, signed_by: str | None, problems: Problems) -> None:
    """Code from a source runs on this core: somebody who is trusted must have signed for it."""
    for function in functions:
        if function.code is not None and signed_by is None and not policy.allow_unsigned_code:
            text = (
                "its code comes from a source, which needs a document signed with a key of policy.trusted_keys;"
                " or add to policy in topics.yaml: allow_unsigned_code: true"
            )
            problems.note(FORBIDDEN, f"the function {function.id}", text)


def allows(pattern: str, name: str) -> bool:
    """Whether a pattern of the policy matches a source's name; ``*`` stands for any characters, ``/`` too."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None


def is_below(path: str, root: str) -> bool:
    """Whether `path` is `root` or lies below it; both absolute and normalised."""
    return path == root or path.startswith(root.rstrip("/") + "/")


def _widened(name: str) -> str:
    return name.rpartition("/")[0] + "/*"


def _check_users(functions: tuple[Function, ...], policy: Policy, problems: Problems) -> None:
    for function in functions:
        if function.run_as is not None and 0 in (function.run_as.uid, function.run_as.gid) and not policy.allow_root:
            text = "is to run as root, which is not allowed here; add to policy in topics.yaml: allow_root: true"
            problems.note(FORBIDDEN, f"the function {function.id}", text)


def _check_quotas(deployment: Deployment, quotas: Quotas, problems: Problems) -> None:
    functions = deployment.functions
    counts = {
        "resources": len(deployment.resources) + len(deployment.local) + len(deployment.secrets),
        "functions": len(functions),
        "subscriptions": len(deployment.subscriptions),
        "processes": sum(each.processes for each in functions),
    }
    for name, count in counts.items():
        most = getattr(quotas, name)
        if most is not None and count > most:
            problems.note(FORBIDDEN, f"the group's {name}", _beyond(name, str(count), str(most), str(count)))
    if quotas.memory_bytes is None:
        return
    for each in functions:
        if each.memory_kb is None:
            text = "has no MemorySize, which policy.quotas.memory asks for; state it, in KB"
            problems.note(FORBIDDEN, f"the function {each.id}", text)
    needed = sum(each.processes * (each.memory_kb or 0) for each in functions) * 1024
    if needed > quotas.memory_bytes:
        text = _beyond("memory", f"{_mib(needed)} MiB", f"{_mib(quotas.memory_bytes)} MiB", f"{_mib(needed)} MiB")
        problems.note(FORBIDDEN, "the MemorySize of all processes together", text)


def _beyond(name: str, found: str, most: str, line: str) -> str:
    text = f"{found} is more than this core allows ({most}); ask for less, or write in topics.yaml:"
    return f"{text} policy: {{quotas: {{{name}: {line}}}}}"


def _mib(size: int) -> int:
    return -(-size // 2**20)
