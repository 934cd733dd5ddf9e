"""The groups that own a function's resources, and whether its worker can be given them. Reads the machine's groups."""

from __future__ import annotations

import grp
import os
from collections.abc import Iterator

from agent.deployment.definition import Deployment, Function
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
    wanted = {gid for _, gid in _owners(function, deployment)}
    return tuple(sorted(wanted - _held())) if os.geteuid() == 0 else ()


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


def _held() -> set[int]:
    return {os.getegid(), *os.getgroups()}
