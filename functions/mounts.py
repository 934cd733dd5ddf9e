"""A worker's own view of the file system: a mount namespace in which a model that it may only read cannot be written.

`enter` is called before any of the function's code runs, while the process has one thread. It needs root or user
namespaces that anybody may make; where the machine has neither, the worker sees what the agent's user sees, and says
so. Without this, code that runs as the agent's user could change a model that other functions and the way back rely on.

What the agent asks for:

    {"read_only": [directory], "writable": [directory below those], "shown": [[source, path, writable]],
     "stage": an empty directory}

`shown` are directories that are to be found at another path, too: a model at its DestinationPath, for code that opens
it without the prefix. The host's own file system is never changed: where the path is missing, the nearest directory
above it is replaced, in this namespace alone, by one that holds the same and the path. What the host has there stays.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC = 1, 32, 4096, 8192, 16384
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE = 1 << 17, 1 << 18, 1 << 19
KEPT = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME  # the same bits as MS_*
MNT_DETACH = 2
PR_CAPBSET_DROP = 24
CAPABILITIES_V3 = 0x20080522
LAST_CAPABILITY = 63
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


def enter(asked: Mapping[str, Any] | None) -> Seen:
    """Makes the view, as far as the machine allows; never raises OSError."""
    if not asked:
        return Seen("none", ())
    directory = os.getcwd()
    try:
        libc = _Libc()
        tier, given_up = _own_namespace(libc)
    except (OSError, AttributeError) as error:
        return Seen("none", (_unprotected(error), *_nowhere(asked["shown"])))
    warnings: list[str] = []
    try:
        libc.mount(None, "/", MS_REC | MS_SLAVE)  # mounts of the host still arrive, and leave; ours stay here
        warnings += _show(libc, asked)
        for path in asked["read_only"]:
            libc.bind(path, path, writable=False)
        for path in asked["writable"]:
            libc.bind(path, path, writable=True)
        os.chdir(directory)  # what it was lies beneath the new mounts, where all can be written
        libc.give_up(given_up)
    except OSError as error:
        return Seen("none", (_unprotected(error), *warnings))
    return Seen(tier, tuple(warnings))


def _own_namespace(libc: _Libc) -> tuple[str, Sequence[int]]:
    """A mount namespace of this process's own; returns the tier, and which capabilities to give up in the end."""
    user, group = os.geteuid(), os.getegid()
    try:
        libc.unshare(CLONE_NEWNS)
    except PermissionError:
        libc.unshare(CLONE_NEWUSER | CLONE_NEWNS)
        for file, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{file}", "w", encoding="ascii") as stream:
                stream.write(text)
        return "user namespace", range(LAST_CAPABILITY + 1)
    return "namespace", WAYS_OUT


def _show(libc: _Libc, asked: Mapping[str, Any]) -> list[str]:
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


def _place(libc: _Libc, path: str, asked: Mapping[str, Any], replaced: set[str]) -> str:
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


def _replace(libc: _Libc, directory: str, without: str, stage: str) -> None:
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


def _take_over(libc: _Libc, entry: os.DirEntry[str], place: str) -> None:
    if entry.is_symlink():
        os.symlink(os.readlink(entry.path), place)
        return
    if entry.is_dir():
        os.mkdir(place)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
    libc.mount(entry.path, place, MS_BIND | MS_REC)


class _Libc:
    """The system calls that Python has no functions for; each raises OSError."""

    def __init__(self) -> None:
        self._c = ctypes.CDLL(None, use_errno=True)

    def _call(self, name: str, *args: Any) -> None:
        call = getattr(self._c, name, None)
        if call is None:
            raise OSError(None, f"this system's C library has no {name}")
        if call(*args) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")

    def unshare(self, flags: int) -> None:
        self._call("unshare", flags)

    def mount(self, source: str | None, target: str, flags: int, kind: str | None = None, data: str = "") -> None:
        encoded = [os.fsencode(each) if each is not None else None for each in (source, target, kind, data)]
        self._call("mount", encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])

    def bind(self, source: str, target: str, *, writable: bool) -> None:
        self.mount(source, target, MS_BIND | MS_REC)
        self.remount(target, writable=writable)

    def remount(self, target: str, *, writable: bool) -> None:
        """Only read-only or not is changed: what else the host has set may not be taken off in a user namespace."""
        kept = os.statvfs(target).f_flag & KEPT
        self.mount(None, target, MS_REMOUNT | MS_BIND | kept | (0 if writable else MS_RDONLY))

    def unmount(self, target: str) -> None:
        self._c.umount2(os.fsencode(target), MNT_DETACH)

    def turn_root(self, directory: str) -> None:
        """Makes `directory` the root, and lets go of the old one."""
        os.chdir(directory)
        self._call("pivot_root", b".", b".")
        self._call("umount2", b".", MNT_DETACH)
        os.chdir("/")

    def give_up(self, capabilities: Sequence[int]) -> None:
        """Takes capabilities off this process and all that it starts, for good."""
        for each in capabilities:
            self._c.prctl(PR_CAPBSET_DROP, each, 0, 0, 0)  # fails for what this kernel or user does not have
        header = (ctypes.c_uint32 * 2)(CAPABILITIES_V3, 0)
        held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then their upper halves
        self._call("capget", header, held)
        for each in capabilities:
            for kind in range(3):
                held[3 * (each // 32) + kind] &= ~(1 << each % 32) & 0xFFFFFFFF
        self._call("capset", header, held)


def _unprotected(error: Exception) -> str:
    return f"its models are not kept from being written by it: this machine allows no mount namespace ({error})"


def _not_shown(path: str, why: str) -> str:
    return (
        f"{path} is found below AWS_GG_RESOURCE_PREFIX only: {why}. For code that opens the path without the prefix a"
        " trial proves nothing"
    )


def _nowhere(shown: Sequence[Sequence[Any]]) -> list[str]:
    return [_not_shown(path, "there is no mount namespace") for _, path, _ in shown]
