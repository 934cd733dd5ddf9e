"""The machine: Python, clock, the disk below the state directory, how far functions can be kept apart. Blocks."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import agent
from agent.doctor.findings import Finding, failed, ok, warned
from functions.worker import OLDEST_PYTHON

LIBRARIES: Final = ("paho.mqtt.client", "msgpack", "yaml", "tenacity", "cryptography", "boto3", "numpy", "rich")
FSYNCS, SLOW_FSYNC_S = 20, 0.05  # a group commit of the spool is one; at 50 ms it is 20 acknowledgements a second
DAY_S: Final = 24 * 3600.0
_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronised
_PROBE: Final = """
import json, os, sys
from functions import mounts
base = sys.argv[1]
seen = mounts.enter({"read_only": [base], "writable": [base + "/home"], "shown": [], "stage": base + "/stage"})
print(json.dumps({"tier": seen.tier, "warnings": seen.warnings}))
"""


def python() -> Iterator[Finding]:
    """The interpreter and the libraries that the agent is built on."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        yield failed("python", f"Python {version} is too old.", "Install Python 3.10 or later.")
        return
    missing = []
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name.partition(".")[0])
    if missing:
        remedy = f"Install marram anew: {sys.executable} -m pip install marram"
        yield failed("python", f"Python {version} lacks {', '.join(missing)}.", remedy)
    else:
        yield ok("python", f"Python {version}, with all that the agent needs")


def clock() -> Iterator[Finding]:
    """Whether the time can be right: certificates, signed URLs and the times in samples depend on it."""
    now, installed = time.time(), Path(agent.__file__).stat().st_mtime
    day = time.strftime("%Y-%m-%d", time.gmtime(now))
    if now < installed - DAY_S:
        text = f"The clock says {day}, which is before marram was installed."
        yield failed("clock", text, "Set it, and have it kept right: apt-get install chrony")
    elif _synchronised() is False:
        text = f"The clock says {day}, and nothing keeps it right."
        yield warned("clock", text, "Have it synchronised: apt-get install chrony (or systemd-timesyncd)")
    else:
        yield ok("clock", f"{day}, kept right")


def _synchronised() -> bool | None:
    """What the kernel says; None where it says nothing."""
    buffer = ctypes.create_string_buffer(512)  # struct timex, whose first word asks for nothing to be set
    try:
        state = ctypes.CDLL(None).adjtimex(buffer)
    except (OSError, AttributeError):
        return None
    return None if state < 0 else bool(state != _TIME_ERROR)


def disk(state: Path, free_bytes: int) -> Iterator[Finding]:
    """Room below the state directory, and how long the disk takes to keep something.

    Args:
        free_bytes: what the settings want to stay free.
    """
    there = _existing(state)
    if not os.access(there, os.W_OK | os.X_OK):
        yield failed("disk", f"{there} cannot be written to.", "Let the agent's user own the state directory.")
        return
    room = os.statvfs(there)
    free, files = room.f_bavail * room.f_frsize, room.f_favail
    said = f"{free / 1e9:.1f} GB free below {there}"
    if free < free_bytes or (room.f_files and files < 1000):
        inodes = "" if files >= 1000 or not room.f_files else f", and room for {files} files only"
        remedy = "Make room, or have `state` on a larger disk."
        yield failed("disk", f"{said}{inodes}; deployments want {free_bytes / 1e9:.1f} GB to stay free.", remedy)
    elif free < 4 * free_bytes:
        yield warned("disk", f"{said}.", "A large model needs its archive's and its own size: make some room.")
    else:
        yield ok("disk", said)
    took = _fsync_s(there)
    if took > SLOW_FSYNC_S:
        text = f"It takes {took * 1000:.0f} ms to have something safe on the disk."
        yield warned("fsync", text, "Use a faster card or an SSD: what goes into the spool waits for it.")
    else:
        yield ok("fsync", f"{took * 1000:.2f} ms to have something safe on the disk")


def _existing(directory: Path) -> Path:
    return next(each for each in (directory, *directory.absolute().parents) if each.exists())


def _fsync_s(directory: Path) -> float:
    """The median of a few small writes with fsync."""
    times = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(FSYNCS):
            began = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def isolation() -> Iterator[Finding]:
    """What a function's worker can be kept from, tried in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("home", "stage"):
            Path(folder, name).mkdir()
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, folder], capture_output=True, text=True, timeout=60, cwd=folder, check=False
        )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no word"]
        yield failed("isolation", f"A worker's view of the files cannot be tried: {last[0]}", "Please report this.")
        return
    seen = json.loads(done.stdout)
    if seen["tier"] == "none":
        why = " ".join(seen["warnings"])
        remedy = "Run the agent as root, or allow user namespaces: sysctl kernel.unprivileged_userns_clone=1"
        yield warned("isolation", f"Functions can write what the agent's user can. {why}".strip(), remedy)
    else:
        yield ok("isolation", f"functions get a view of the files of their own ({seen['tier']})")
