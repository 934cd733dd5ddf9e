"""What a function sees of its models: links below its prefix, and the mounts that its worker is asked to make.

Values and paths; only `lay` touches the disk, and blocks for next to no time. How the mounts are made, and what stands
in for them where the machine allows none, is the worker's matter: functions.mounts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agent.deployment import overlays
from agent.deployment.definition import DEVICE, VOLUME, Function
from agent.deployment.store import Group
from agent.values import dataclass


@dataclass(frozen=True, slots=True)
class Seen:
    """A model or a volume as one function sees it.

    Attributes:
        resource: its Id.
        tree: the concrete directory of its files, absolute.
        destination: its DestinationPath, if it has one.
        writable: whether the function may change the files; the tree is its own then, unless it is shared.
        shared: it is a volume of the core.
    """

    resource: str
    tree: Path
    destination: str | None
    writable: bool = False
    shared: bool = False


def models_of(function: Function, group: Group, state: Path) -> tuple[Seen, ...]:
    """The function's models in the order of its policies."""
    return tuple(_model(function, policy.resource, group, state) for policy in function.policies)


def _model(function: Function, resource: str, group: Group, state: Path) -> Seen:
    version, destination = group.objects[resource], group.deployment.resource(resource).destination
    writable = overlays.is_writable(function, group.deployment, resource)
    tree = overlays.place(state, function.id, resource, version.hex) if writable else version.tree
    return Seen(resource, tree.resolve(), destination, writable)


def volumes_of(function: Function, group: Group) -> tuple[Seen, ...]:
    """The function's volumes."""
    found = [(policy, group.deployment.local_resource(policy.resource)) for policy in function.local]
    return tuple(
        Seen(volume.id, Path(volume.source).resolve(), volume.destination, policy.permission == "rw", shared=True)
        for policy, volume in found
        if volume.kind == VOLUME
    )


def devices_of(function: Function, group: Group) -> tuple[str, ...]:
    """The paths of the function's devices."""
    found = [group.deployment.local_resource(policy.resource) for policy in function.local]
    return tuple(device.source for device in found if device.kind == DEVICE)


def lay(view: Path, seen: Iterable[Seen]) -> None:
    """Makes the new directory `view`, in which each DestinationPath leads to its tree."""
    view.mkdir(parents=True)
    for each in seen:
        if each.destination:
            link = view / each.destination.lstrip("/")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(each.tree)


def make_stage(state: Path) -> None:
    """Makes the empty directory on which workers put together what they see, and the vault, which they do not see."""
    _stage(state).mkdir(parents=True, exist_ok=True)
    _vault(state).mkdir(mode=0o700, exist_ok=True)


def mounts(state: Path, home: Path, everything: Iterable[Seen]) -> dict[str, Any]:
    """The key ``mounts`` of a worker's CONFIG: of the state directory it may write its home and no more."""
    seen = tuple(everything)
    return {
        # The objects may be on a disk of their own.
        "read_only": [str(state), str(state / "objects"), *(str(s.tree) for s in seen if s.shared and not s.writable)],
        "writable": [str(home), *(str(s.tree) for s in seen if s.writable)],
        "shown": [[str(s.tree), s.destination, s.writable] for s in seen if s.destination not in (None, str(s.tree))],
        "unseen": [str(_vault(state))],
        "stage": str(_stage(state)),
    }


def _vault(state: Path) -> Path:
    return state / "vault"  # see agent.deployment.vault, which only children import


def _stage(state: Path) -> Path:
    return state / "run" / ".stage"
