"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench.places import ROOT


def described() -> dict[str, Any]:
    """Processor, kernel, versions, and how busy the machine was before."""
    return {
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)),
        "load": [round(each, 2) for each in os.getloadavg()],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        "mosquitto": _mosquitto(),
        **{name: version(name) for name in ("paho-mqtt", "onnxruntime", "numpy", "msgpack", "orjson")},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _mosquitto() -> str:
    binary = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin")
    words = _said(binary or "mosquitto", "-h").split()
    return words[2] if len(words) > 2 else ""


def _said(*argv: str) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return done.stdout.strip()
