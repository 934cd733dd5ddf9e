"""Reads how a function is to be run: V1's Execution (IsolationMode, RunAs), and what the key ``Marram`` adds. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

from agent.deployment.definition import CONTAINER, NO_CONTAINER, RunAs
from agent.deployment.fields import Fields

TIERS: Final = ("process", "user", "namespace", "container")  # weakest first, as functions.isolation has them
MAX_ID: Final = 2**32 - 2  # 2**32 - 1 is the kernel's "leave it as it is"
MAX_PROCESSES: Final = 64
MOST_ON_DEMAND: Final = 25  # V1: on-demand containers side by side
KEEP_ALIVE_S: Final = 300.0
MAX_KEEP_ALIVE_S: Final = 86_400.0
DISK_KB: Final = 1024 * 1024


class Execution(NamedTuple):
    """IsolationMode, None where the document leaves it open, and RunAs."""

    isolation: str | None = None
    run_as: RunAs | None = None


def read_execution(environment: Fields, default: Execution) -> Execution:
    """The key Execution of an Environment; what it leaves open is the group's default."""
    fields = environment.fields("Execution")
    if fields is None:
        return default
    isolation = fields.choice("IsolationMode", (CONTAINER, NO_CONTAINER))
    run_as = _run_as(fields)
    fields.done()
    return Execution(isolation or default.isolation, run_as or default.run_as)


def _run_as(execution: Fields) -> RunAs | None:
    fields = execution.fields("RunAs")
    if fields is None:
        return None
    uid, gid = fields.integer("Uid", None, 0, MAX_ID), fields.integer("Gid", None, 0, MAX_ID)
    if uid is None and gid is None and not fields.has("Uid") and not fields.has("Gid"):
        fields.bad("", "names neither Uid nor Gid; leave it out, or give numbers")
    fields.done()
    return RunAs(uid, gid)


def read_lifecycle(marram: Fields, *, pinned: bool) -> dict[str, object]:
    """How many workers a function has and how long they stay, of its key ``Marram``."""
    keep_alive = marram.number("KeepAlive", None, 0.0, MAX_KEEP_ALIVE_S)
    if pinned and keep_alive is not None:
        marram.bad("KeepAlive", 'is for a function on demand, of which "Pinned" is false; the others stay')
    return {
        "processes": marram.integer("Processes", None, 1, MAX_PROCESSES) or most_processes(pinned=pinned),
        "keep_alive_s": KEEP_ALIVE_S if keep_alive is None else float(keep_alive),
    }


def most_processes(*, pinned: bool) -> int:
    """How many workers a function has where the document does not say: as V1."""
    return 1 if pinned else MOST_ON_DEMAND


def read_confinement(marram: Fields, isolation: str | None) -> dict[str, object]:
    """Which tier a function demands, and what it is granted in a container, of its key ``Marram``."""
    contained = isolation != NO_CONTAINER
    demanded = marram.choice("Isolation", TIERS)
    if demanded in ("namespace", "container") and not contained:
        marram.bad("Isolation", f"{demanded} goes with IsolationMode {CONTAINER}, not with {NO_CONTAINER}")
    network = marram.flag("Network", False)
    disk = marram.integer("DiskSize", DISK_KB, 1, 2**40)
    for key in ("Network", "DiskSize"):
        if marram.has(key) and not contained:
            marram.problems.warn(marram.path(key), f"is not used: {NO_CONTAINER} bounds neither network nor disk")
    return {"demanded": demanded, "network": network, "disk_kb": disk if contained else None}
