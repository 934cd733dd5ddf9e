"""A worker's own view of the file system: a mount namespace in which a model that it may only read cannot be written.

`enter` is called before any of the function's code runs, while the process has one thread. It needs root or user
namespaces that anybody may make; where the machine has neither, the worker sees what the agent's user sees, and says
so. Without this, code that runs as the agent's user could change a model that other functions and the way back rely on.

What the agent asks for:

    {"read_only": [directory], "writable": [directory below those], "shown": [[source, path, writable]],
     "unseen": [directory], "stage": an empty directory}

`shown` are directories that are to be found at another path, too: a model at its DestinationPath, for code that opens
it without the prefix. The host's own file system is never changed: where the path is missing, the nearest directory
above it is replaced, in this namespace alone, by one that holds the same and the path. What the host has there stays.
`unseen` are directories that look empty here: the key of the core's secrets lies in one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from functions.system_calls import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    LAST_CAPABILITY,
    MS_BIND,
    MS_MOVE,
    MS_PRIVATE,
    MS_REC,
    MS_SLAVE,
    MS_UNBINDABLE,
    Libc,
)

# With any of these root could undo the view or go around it: DAC_READ_SEARCH (open by handle), SYS_MODULE, SYS_RAWIO,
# SYS_PTRACE (the agent's /proc/PID/root), SYS_ADMIN (remount), MKNOD (the disk itself), BPF.
WAYS_OUT = (2, 16, 17, 19, 21, 27, 39)
MOST_ENTRIES = 128  # of a directory that is replaced
NEVER_BELOW = ("/proc/", "/sys/", "/dev/")


class Seen(NamedTuple):
    """What became of the view.

    Attributes:
        tier: ``namespace``, ``user namespace``, or ``none``: the worker may write what its user may.
        warnings: what could not be done, and why.
    """

    tier: str
    warnings: tuple[str, ...]


def enter(asked: Mapping[str, Any] | None, more: Callable[[Libc], None] = lambda libc: None) -> Seen:
    """Makes the view, as far as the machine allows; never raises OSError.

    Args:
        more: is called when it is made, with the rights to mount still there; may raise OSError.
    """
    if not asked:
        return Seen("none", ())
    directory = os.getcwd()
    try:
        libc = Libc()
        tier, given_up = _own_namespace(libc)
    except (OSError, AttributeError) as error:
        return Seen("none", (_unprotected(error), *_nowhere(asked["shown"])))
    warnings: list[str] = []
    try:
        libc.mount(None, "/", MS_REC | MS_SLAVE)  # mounts of the host still arrive, and leave; ours stay here
        warnings += show(libc, asked)
        for path in asked["read_only"]:
            libc.bind(path, path, writable=False)
        for path in asked["writable"]:
            libc.bind(path, path, writable=True)
        for path in asked.get("unseen", ()):
            libc.bind(asked["stage"], path, writable=False)
        more(libc)
        os.chdir(directory)  # what it was lies beneath the new mounts, where all can be written
        libc.give_up(given_up)
    except OSError as error:
        return Seen("none", (_unprotected(error), *warnings))
    return Seen(tier, tuple(warnings))


def _own_namespace(libc: Libc) -> tuple[str, Sequence[int]]:
    """A mount namespace of this process's own; returns the tier, and which capabilities to give up in the end."""
    try:
        libc.unshare(CLONE_NEWNS)
    except PermissionError:
        as_user(libc, CLONE_NEWNS)
        return "user namespace", range(LAST_CAPABILITY + 1)
    return "namespace", WAYS_OUT


def as_user(libc: Libc, flags: int) -> None:
    """Namespaces of this process's own inside a user namespace, in which its user is whom it was, with all rights.

    Raises:
        OSError: this machine lets only root do so.
    """
    user, group = os.geteuid(), os.getegid()
    libc.unshare(CLONE_NEWUSER | flags)
    for file, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{file}", "w", encoding="ascii") as stream:
            stream.write(text)


def show(libc: Libc, asked: Mapping[str, Any]) -> list[str]:
    """Makes each of `shown` be found at its path; returns what could not be."""
    warnings: list[str] = []
    replaced: set[str] = set()
    for source, path, writable in asked["shown"]:
        try:
            libc.bind(source, _place(libc, path, asked, replaced), writable=writable)
        except OSError as error:
            warnings.append(_not_shown(path, error.strerror or str(error)))
    for above in replaced:
        libc.remount(above, writable=False)  # what is written there would be lost
    return warnings


def _place(libc: Libc, path: str, asked: Mapping[str, Any], replaced: set[str]) -> str:
    """An empty directory at `path`, made in a replaced directory where the host has none."""
    state = asked["read_only"][0]
    if path.startswith(NEVER_BELOW):
        raise FileExistsError(None, "it is the kernel's own")
    ours = os.path.islink(path) and os.readlink(path).startswith(f"{state}/")  # the host's link to the current group
    if os.path.lexists(path) and not ours:
        if not os.path.isdir(path) or os.listdir(path):
            raise FileExistsError(None, "something is there on this core")
        return os.path.realpath(path)
    above, rest = os.path.dirname(path), [os.path.basename(path)]
    while not os.path.isdir(above):
        if os.path.lexists(above):
            raise NotADirectoryError(None, f"{above} is no directory")
        above, name = os.path.split(above)
        rest.insert(0, name)
    above = os.path.realpath(above)
    if above not in replaced:
        _replace(libc, above, rest[0], asked["stage"])
        replaced.add(above)
    place = os.path.join(above, *rest)
    os.makedirs(place, exist_ok=True)
    return place


def _replace(libc: Libc, directory: str, without: str, stage: str) -> None:
    """Puts a directory of our own in place of `directory`: all that it holds but `without`, and room for more."""
    entries = [entry for entry in os.scandir(directory) if entry.name != without]
    if len(entries) > MOST_ENTRIES:
        raise OSError(None, f"{directory} holds more than {MOST_ENTRIES} files")
    libc.mount("tmpfs", stage, 0, "tmpfs", "mode=0755,size=1m")
    try:
        libc.mount(None, stage, MS_UNBINDABLE)  # it may lie below what is bound into it
        for entry in entries:
            _take_over(libc, entry, os.path.join(stage, entry.name))
        if directory == "/":
            libc.turn_root(stage)
        else:
            libc.mount(stage, directory, MS_MOVE)
        libc.mount(None, directory, MS_PRIVATE)
    except OSError:
        libc.unmount(stage)
        raise


def _take_over(libc: Libc, entry: os.DirEntry[str], place: str) -> None:
    if entry.is_symlink():
        os.symlink(os.readlink(entry.path), place)
        return
    if entry.is_dir():
        os.mkdir(place)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
    libc.mount(entry.path, place, MS_BIND | MS_REC)


def _unprotected(error: Exception) -> str:
    return f"its models are not kept from being written by it: this machine allows no mount namespace ({error})"


def _not_shown(path: str, why: str) -> str:
    return (
        f"{path} is found below AWS_GG_RESOURCE_PREFIX only: {why}. For code that opens the path without the prefix a"
        " trial proves nothing"
    )


def _nowhere(shown: Sequence[Sequence[Any]]) -> list[str]:
    return [_not_shown(path, "there is no mount namespace") for _, path, _ in shown]
