"""What a function's workers are asked to be: their user, what of the machine they are shown, and their bounds.

Values, and what the machine's list of users says; `give_home` alone changes the disk. How it is done, and how far the
machine allows it, is the worker's matter: functions.isolation.
"""

from __future__ import annotations

import os
import pwd
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from agent.deployment.definition import Function
from agent.errors import AgentError
from agent.inference.views import Seen
from agent.settings import Settings
from agent.values import dataclass

# UIDs that systemd keeps for users who are made up while something runs (DynamicUser): nobody else uses them.
FIRST_ID: Final = 61184
IDS: Final = 65519 - FIRST_ID + 1
TASKS: Final = 128  # processes and threads, for each worker that may run and one more
TMP_BYTES: Final = 64 * 1024 * 1024
# Beside what is resident there is what is only reserved; a bound for what runs away faster than it is looked at.
DATA_FACTOR: Final = 2
DATA_EXTRA_BYTES: Final = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class User:
    """Whom a worker runs as: numbers, with the groups that the user has beside its first."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def own_ids(functions: Iterable[str]) -> dict[str, int]:
    """A UID of its own for each function Id, nearly always the same for the same Id."""
    taken: dict[int, str] = {}
    for id in sorted(functions):
        number = zlib.crc32(id.encode()) % IDS
        while number in taken and len(taken) < IDS:
            number = (number + 1) % IDS
        taken[number] = id
    return {id: FIRST_ID + number for number, id in taken.items()}


def user_of(function: Function, group: Sequence[Function], groups: Collection[int]) -> User | None:
    """Whom the function's workers run as; None: the agent's own user.

    A user of its own is for whoever asks for a container in so many words: without RunAs and IsolationMode a worker is
    the agent's user, isolated in all else.

    Args:
        group: all functions of the group.
        groups: GIDs of the owners of its resources.

    Raises:
        AgentError: RUN_AS_NEEDS_ROOT.
    """
    own = own_ids(each.id for each in group)[function.id]
    if function.run_as is None:
        return User(own, own, tuple(groups)) if function.own_user and os.geteuid() == 0 else None
    uid, gid = function.run_as.uid, function.run_as.gid
    uid = own if uid is None else uid
    known = _known(uid)
    gid = gid if gid is not None else known.pw_gid if known else uid
    if os.geteuid() != 0:
        if (uid, gid) == (os.geteuid(), os.getegid()):
            return None
        text = f"function {function.id} is to run as user {uid}, group {gid}; the agent runs as user {os.geteuid()}"
        raise AgentError("RUN_AS_NEEDS_ROOT", text, "Run the agent as root, or leave RunAs out.")
    more = os.getgrouplist(known.pw_name, gid) if known else []
    return User(uid, gid, tuple(sorted({*groups, *more})))


def _known(uid: int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None


def asked(
    function: Function,
    user: User | None,
    settings: Settings,
    *,
    home: Path,
    read: Iterable[Path],
    seen: Iterable[Seen],
    devices: Iterable[str],
) -> dict[str, Any]:
    """The key ``isolation`` of a worker's CONFIG, see functions.isolation."""
    trees = [[str(each.tree), str(each.tree), each.writable] for each in seen]
    return {
        "contained": function.contained,
        "demanded": function.demanded,
        "user": [user.uid, user.gid, list(user.groups)] if user else None,
        "network": function.network,
        "devices": list(devices),
        "hidden": _hidden(settings),
        "needed": [*trees, *([str(path), str(path), False] for path in read), [str(home), str(home), True]],
        "tmp_bytes": TMP_BYTES,
        "limits": _limits(function),
    }


def _limits(function: Function) -> Mapping[str, int | None]:
    memory = function.memory_kb
    return {
        "tasks": TASKS * (function.processes + 1) if function.contained else None,
        "file_bytes": function.disk_kb * 1024 if function.disk_kb else None,
        "data_bytes": memory * 1024 * DATA_FACTOR + DATA_EXTRA_BYTES if memory and function.contained else None,
    }


def _hidden(settings: Settings) -> list[str]:
    """The agent's state, its user's home and its keys; in a container, what is needed of them is shown again."""
    keys = [str(file) for file in settings.secret_files]
    home = os.path.expanduser("~")
    return [str(settings.state), *([home] if _is_private(home) else []), *keys]


def _is_private(home: str) -> bool:
    try:
        return home not in ("/", "") and os.stat(home).st_uid == os.geteuid() and not home.startswith("/usr")
    except OSError:
        return False


def give(directory: Path, user: User | None) -> None:
    """Makes `directory` and all in it the user's, where it is another's. Blocks; only where the agent is root.

    Links are not followed, wherever they lead.
    """
    if os.geteuid() != 0 or not directory.exists():
        return
    uid = user.uid if user else 0
    if directory.stat().st_uid == uid:
        return
    for _, folders, files, descriptor in os.fwalk(directory, follow_symlinks=False):
        for name in (*folders, *files):
            os.chown(name, uid, -1, dir_fd=descriptor, follow_symlinks=False)
    os.chown(directory, uid, -1)  # last: what was interrupted is done again
