"""The system calls of a worker's isolation that Python has no functions for; each raises OSError where it fails."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Sequence
from typing import Any

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC = 1, 2, 4, 8, 32, 4096, 8192, 16384
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE = 1 << 17, 1 << 18, 1 << 19
KEPT = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME  # the same bits as MS_*
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
CAPABILITIES_V3 = 0x20080522
LAST_CAPABILITY = 63
SYS_MOUNT_SETATTR = 442  # the same on every architecture, as all calls that came after 2019
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 1, 2
ENOSYS = 38
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


class Libc:
    """This system's C library."""

    def __init__(self) -> None:
        self._c = ctypes.CDLL(None, use_errno=True)

    def _call(self, name: str, *args: Any) -> None:
        call = getattr(self._c, name, None)
        if call is None:
            raise OSError(None, f"this system's C library has no {name}")
        if call(*args) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")

    # -- namespaces and mounts --------------------------------------------------------------------------------------

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

    def make_all_read_only(self) -> None:
        """Every mount of this namespace: nothing can be written, and no program there gives more rights."""
        attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
        try:
            self._call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes))
        except OSError as error:
            if error.errno != ENOSYS:  # before Linux 5.12: one by one
                raise
            for target in _mounted():
                self.remount(target, writable=False)

    def unmount(self, target: str) -> None:
        self._c.umount2(os.fsencode(target), MNT_DETACH)

    def turn_root(self, directory: str) -> None:
        """Makes `directory` the root, and lets go of the old one."""
        os.chdir(directory)
        self._call("pivot_root", b".", b".")
        self._call("umount2", b".", MNT_DETACH)
        os.chdir("/")

    # -- this process -----------------------------------------------------------------------------------------------

    def bound(self, capabilities: Sequence[int]) -> None:
        """Keeps all that this process starts from ever having these capabilities; it has them still itself."""
        for each in capabilities:
            self._c.prctl(PR_CAPBSET_DROP, each, 0, 0, 0)  # fails for what this kernel or user does not have

    def give_up(self, capabilities: Sequence[int]) -> None:
        """Takes capabilities off this process and all that it starts, for good."""
        self.bound(capabilities)
        header = (ctypes.c_uint32 * 2)(CAPABILITIES_V3, 0)
        held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then their upper halves
        self._call("capget", header, held)
        for each in capabilities:
            for kind in range(3):
                held[3 * (each // 32) + kind] &= ~(1 << each % 32) & 0xFFFFFFFF
        self._call("capset", header, held)

    def no_new_privileges(self) -> None:
        """No program that this process starts gets more rights than it has."""
        self._call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    def set_dumpable(self, value: bool) -> None:
        """Whether processes of the same user may look into this one: its environment, its memory, its files."""
        self._call("prctl", PR_SET_DUMPABLE, int(value), 0, 0, 0)

    def end_with_parent(self) -> None:
        """Has the kernel kill this process when its parent ends; a change of user takes that off."""
        self._call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def loopback_up() -> None:
    """Sets up 127.0.0.1 in a network namespace of one's own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sH14s", b"lo", 0, b""))
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", flags | IFF_UP, b""))


def _mounted() -> list[str]:
    """Where something is mounted, in the order of mounting; see proc(5), mountinfo."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        places = [line.split()[4] for line in file]
    for escaped, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        places = [place.replace(escaped, plain) for place in places]
    return [place for place in dict.fromkeys(places) if os.path.lexists(place)]
