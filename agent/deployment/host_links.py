"""Links on the host's own file system from DestinationPaths to the group that is current, where the policy allows.

Only links of ours are ever replaced or removed. What cannot be linked becomes a warning. All functions block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from agent.deployment import durable
from agent.deployment.definition import Deployment
from agent.deployment.permissions import is_below
from agent.values import dataclass


@dataclass(frozen=True, slots=True)
class Links:
    """The links that are there now, and what could not be linked."""

    made: tuple[str, ...]
    warnings: tuple[str, ...]


def wanted(deployment: Deployment, roots: Iterable[str], state: Path) -> dict[str, str]:
    """Where each allowed DestinationPath leads: always through `current`, so that a swap turns all of them at once."""
    allowed = tuple(roots)
    return {
        resource.destination: str(state / "current" / "resources" / resource.id / "tree")
        for resource in deployment.resources
        if resource.destination and any(is_below(resource.destination, root) for root in allowed)
    }


def align(links: Mapping[str, str], ours: Iterable[str], state: Path) -> Links:
    """Makes the links that are wanted and removes ours that are not.

    Args:
        links: target by path.
        ours: the paths of links made before.
    """
    made: list[str] = []
    warnings: list[str] = []
    for path in ours:
        if path not in links and _is_ours(Path(path), state):
            _remove(Path(path), warnings)
    for path, target in links.items():
        try:
            _link(Path(path), target, state)
            made.append(path)
        except OSError as error:
            warnings.append(f"{path} on the host does not lead to the model: {error.strerror or error}")
    return Links(tuple(made), tuple(warnings))


def _is_ours(path: Path, state: Path) -> bool:
    return path.is_symlink() and is_below(str(path.readlink()), str(state / "current"))


def _link(path: Path, target: str, state: Path) -> None:
    if path.is_symlink() and str(path.readlink()) == target:
        return
    if (path.exists() or path.is_symlink()) and not _is_ours(path, state):
        raise FileExistsError(None, "something that is not Marram's is there")
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.link(path, target)


def _remove(path: Path, warnings: list[str]) -> None:
    try:
        path.unlink()
    except OSError as error:
        warnings.append(f"the old link {path} cannot be removed: {error.strerror}")
