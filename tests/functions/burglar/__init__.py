"""Tries what the event says, and tells how far it came."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from functions.sdk import Context

MIB = 1024 * 1024


def handler(event: dict[str, Any], context: Context) -> dict[str, Any]:
    """`try`: the name of an attack; the other keys are its arguments."""
    attack = ATTACKS[event.pop("try")]
    try:
        return {"got": attack(**event)}
    except OSError as error:
        return {"refused": errno.errorcode.get(error.errno or 0, str(error))}


def look() -> dict[str, Any]:
    """What it is, and what it sees."""
    return {
        "user": [os.getuid(), os.getgid(), sorted(os.getgroups())],
        "processes": sorted(int(each) for each in os.listdir("/proc") if each.isdigit()),
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "devices": sorted(os.listdir("/dev")),
        "tmp": sorted(os.listdir("/tmp")),
        "arguments": sys.argv[1:],
        "privileges": [line for line in Path("/proc/self/status").read_text().splitlines() if "Cap" in line],
    }


def spy(secret: str) -> list[str]:
    """Where in the environments of all processes a text is found; its own does not count."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if place.parent.name != str(os.getpid()) and secret.encode() in place.read_bytes():
                found.append(str(place))
        except OSError:
            pass
    return found


def end(pid: int) -> str:
    os.kill(pid, signal.SIGTERM)
    return "sent"


def read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")[:1000]


def write(path: str) -> str:
    Path(path).write_text("burglar was here", encoding="utf-8")
    return "written"


def connect(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        return "connected"


def fork() -> None:
    """Forks for ever, each child in a session of its own, where a signal to the worker's does not reach it."""
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            time.sleep(0.05)


def allocate() -> None:
    hoard = []
    while True:
        hoard.append(bytearray(8 * MIB))


def allocate_in_children() -> None:
    """Each child takes little, all of them together take much."""
    for _ in range(16):
        if os.fork() == 0:
            hoard = bytearray(24 * MIB)
            time.sleep(60)
            del hoard
    time.sleep(60)


def fill(directory: str, files: int, mib: int) -> int:
    """Writes so many files of so many MiB; returns how many."""
    directory = os.path.expandvars(directory)
    for number in range(files):
        with tempfile.NamedTemporaryFile(dir=directory, prefix=f"loot-{number}-", delete=False) as file:
            for _ in range(mib):
                file.write(bytes(MIB))
        time.sleep(0.05)
    return files


def linger() -> None:
    time.sleep(60)


def crash() -> None:
    time.sleep(0.2)
    ctypes.string_at(0)


def hang() -> None:
    """In native code that keeps the interpreter."""
    ctypes.PyDLL(None).pause()


ATTACKS: dict[str, Any] = {
    each.__name__: each
    for each in (look, spy, end, read, write, connect, fork, allocate, allocate_in_children, fill, linger, crash, hang)
}
