"""Reads a document's local devices and volumes: V1's shapes and rules. Pure; notes every problem."""

from __future__ import annotations

import posixpath
from typing import Final

from agent.deployment.definition import DEVICE, VOLUME, LocalResource
from agent.deployment.fields import Fields, shown

KINDS: Final = {"LocalDeviceResourceData": DEVICE, "LocalVolumeResourceData": VOLUME}
GROUP: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
KERNELS_OWN: Final = ("/proc", "/sys", "/dev")


def read_local(id: str, name: str, data: Fields) -> LocalResource | None:
    """The device or volume that the member `data` of a ResourceDataContainer describes."""
    kind = KINDS[data.where.rpartition(".")[2]]
    source = _path(data, "SourcePath")
    destination = _path(data, "DestinationPath") if kind == VOLUME else None
    auto, group = _group(data)
    data.done()
    if source is not None and kind == DEVICE and not source.startswith("/dev/"):
        data.bad("SourcePath", f"a device lies below /dev, not at {shown(source)}")
    if source is not None and kind == VOLUME and _is_kernels(source):
        data.bad("SourcePath", f"{shown(source)} is the kernel's own and no volume")
    if destination is not None and _is_kernels(destination):
        data.bad("DestinationPath", f"{shown(destination)} is the kernel's own")
    if source is None or (kind == VOLUME and destination is None):
        return None
    return LocalResource(id, name, kind, source, destination, auto, group)


def _path(data: Fields, key: str) -> str | None:
    path = data.text(key, required=True)
    if path is None:
        return None
    if not path.startswith("/") or path.startswith("//") or path == "/" or posixpath.normpath(path) != path.rstrip("/"):
        data.bad(key, f'must be an absolute path without "." and "..", not {shown(path)}')
        return None
    return path.rstrip("/")


def _is_kernels(path: str) -> bool:
    return any(path == own or path.startswith(f"{own}/") for own in KERNELS_OWN)


def _group(data: Fields) -> tuple[bool, str | None]:
    setting = data.fields("GroupOwnerSetting")
    if setting is None:
        return False, None
    auto = setting.flag("AutoAddGroupOwner", False)
    group = (
        setting.text("GroupOwner", pattern=GROUP, what="a group's name or GID") if setting.has("GroupOwner") else None
    )
    setting.take("GroupOwner")
    setting.done()
    return auto, None if auto else group
