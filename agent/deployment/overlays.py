"""The copies of models that functions may change: one for each function, resource and version, made once.

    overlays/<function>/<resource>/<hex>/      the copy itself

A version is never changed itself: other functions read it, it is verified, and the way back leads to it. A copy belongs
to the resource's group where the agent runs as root, as nobody else can arrange that. It outlives the function's
workers and the agent, and goes with its version. All functions block; one process writes, the one that holds the state
directory's lock.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from agent.deployment import durable
from agent.deployment.definition import Deployment, Function
from agent.deployment.owners import gid_of
from agent.deployment.store import Group


def is_writable(function: Function, deployment: Deployment, resource: str) -> bool:
    """Whether the function may change the resource: what its policy says, else what the resource's owner may."""
    said = next((policy.permission for policy in function.policies if policy.resource == resource), None)
    owner = deployment.resource(resource).owner
    return (said or (owner.permission if owner else "ro")) == "rw"


def place(state: Path, function: str, resource: str, hex: str) -> Path:
    """Where the function's copy of that version is, or would be."""
    return state / "overlays" / function / resource / hex


def prepare(state: Path, group: Group) -> None:
    """Makes the copies that the group's functions need and that are not there yet; durable at return.

    Raises:
        OSError: there is no room, or the disk fails. AgentError: GROUP_UNKNOWN.
    """
    for function in group.deployment.functions:
        for policy in function.policies:
            if is_writable(function, group.deployment, policy.resource):
                version, owner = group.objects[policy.resource], group.deployment.resource(policy.resource).owner
                gid = gid_of(owner.group, policy.resource) if owner else None
                _copy(version.tree, place(state, function.id, policy.resource, version.hex), gid)


def _copy(tree: Path, final: Path, gid: int | None) -> None:
    if final.exists():
        return
    staged = final.with_name(final.name + durable.TEMPORARY)
    durable.remove(staged)
    staged.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(tree, staged, symlinks=True)
    for folder, _, files in os.walk(staged):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            if not path.is_symlink():
                mode = path.stat().st_mode | 0o600
                if gid is not None and os.geteuid() == 0:
                    os.chown(path, -1, gid)
                    mode |= (mode & 0o700) >> 3
                path.chmod(mode)
    durable.sync_tree(staged)
    durable.place(staged, final)
    for above in final.parents[1:4]:  # to the state directory: some may be new
        durable.sync(above)


def prune(state: Path, keep: Collection[str]) -> None:
    """Removes the copies of all versions that are not in `keep`, and what was half made."""
    for copy in list(_copies(state / "overlays")):
        if copy.name not in keep:
            durable.remove(copy)
            for above in (copy.parent, copy.parent.parent):
                if above.is_dir() and not any(above.iterdir()):
                    above.rmdir()


def _copies(root: Path) -> Iterator[Path]:
    if root.is_dir():
        yield from root.glob("*/*/*")
