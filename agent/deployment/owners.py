"""What this machine has of a function's resources: the groups that own them, and its devices and volumes.

Reads the machine's groups and files; nothing is changed.
"""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Iterator, Sequence

from agent.deployment.definition import VOLUME, Deployment, Function, LocalResource
from agent.deployment.permissions import allows
from agent.errors import AgentError


def gid_of(group: str, resource: str) -> int:
    """The GID of a group's name, or of a GID as text, which need not have a name.

    Raises:
        AgentError: GROUP_UNKNOWN.
    """
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        text = f"the owner of the resource {resource}, the group {group}, is unknown on this core"
        raise AgentError("GROUP_UNKNOWN", text, f"Add it (groupadd {group}), or correct GroupOwner.") from None


def groups_of(function: Function, deployment: Deployment) -> tuple[int, ...]:
    """The GIDs that a worker of the function is started with beside the agent's own; none where only root may do so.

    Raises:
        AgentError: GROUP_UNKNOWN.
    """
    return tuple(sorted(set(gids_of(function, deployment)) - _held())) if os.geteuid() == 0 else ()


def gids_of(function: Function, deployment: Deployment) -> tuple[int, ...]:
    """The GIDs of the groups that own the function's resources.

    Raises:
        AgentError: GROUP_UNKNOWN.
    """
    return tuple(sorted({gid for _, gid in _owners(function, deployment)}))


def withheld_from(function: Function, deployment: Deployment) -> list[str]:
    """What to say of the groups that a worker of the function is to have and cannot be given.

    Raises:
        AgentError: GROUP_UNKNOWN.
    """
    held = _held()
    missing = [group for group, gid in _owners(function, deployment) if gid not in held]
    if not missing or os.geteuid() == 0:
        return []
    text = "it does not get the group {}: the agent does not run as root, and its user is not in that group"
    return [text.format(group) for group in dict.fromkeys(missing)]


def _owners(function: Function, deployment: Deployment) -> Iterator[tuple[str, int]]:
    for policy in function.policies:
        owner = deployment.resource(policy.resource).owner
        if owner is not None:
            yield owner.group, gid_of(owner.group, policy.resource)
    for policy in function.local:
        resource = deployment.local_resource(policy.resource)
        if resource.auto_group:
            gid = os.stat(resource.source).st_gid
            yield str(gid), gid
        elif resource.group is not None:
            yield resource.group, gid_of(resource.group, policy.resource)


def check_local(function: Function, deployment: Deployment, allowed: Sequence[str]) -> None:
    """That the function's devices and volumes are there, and where the policy allows them to be, links followed.

    Raises:
        AgentError: LOCAL_RESOURCE_MISSING or LOCAL_RESOURCE_ELSEWHERE.
    """
    for policy in function.local:
        resource = deployment.local_resource(policy.resource)
        real = os.path.realpath(resource.source)
        if not _is_there(resource):
            text = f"{resource.source}, the {resource.kind} {resource.id}, is not there or is no {resource.kind}"
            remedy = "Connect it or make the directory, then deploy again; or correct SourcePath."
            raise AgentError("LOCAL_RESOURCE_MISSING", text, remedy)
        if not any(allows(pattern, real) for pattern in allowed):
            text = f"{resource.source}, the {resource.kind} {resource.id}, leads to {real}, which is not allowed here"
            raise AgentError("LOCAL_RESOURCE_ELSEWHERE", text, f'Add to policy in topics.yaml: local: ["{real}"].')


def _is_there(resource: LocalResource) -> bool:
    try:
        mode = os.stat(resource.source).st_mode
    except OSError:
        return False
    return stat.S_ISDIR(mode) if resource.kind == VOLUME else stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _held() -> set[int]:
    return {os.getegid(), *os.getgroups()}
