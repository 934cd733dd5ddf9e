"""Installs what the bench compares, once, below .cache/bench: C programs, a Python for the loop, MLServer, Node-RED."""

from __future__ import annotations

import compileall
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.bench.places import CACHE, HERE, LOOP, MLSERVER, NODE_RED, ROOT

LOOP_NEEDS: Final = ("onnxruntime", "orjson", "paho-mqtt")
# Newer uvloops break the worker processes of MLServer's default mode.
MLSERVER_NEEDS: Final = ("mlserver", "uvloop<0.22", "onnxruntime", "paho-mqtt")
NODE_NEEDS: Final = ("node-red", "onnxruntime-node")
Tell = Callable[[str], None]


def compile_c(name: str, tell: Tell, *libraries: str) -> None:
    """`name`.c beside this file, to a program below the cache."""
    (CACHE / "bin").mkdir(parents=True, exist_ok=True)
    source, made = HERE / f"{name}.c", CACHE / "bin" / name
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        tell(f"compile {name}.c")
        _run(["gcc", "-O2", "-o", str(made), str(source), *libraries])


def compile_sources(tell: Tell) -> None:
    """Our own to bytecode, as pip does for whoever installs them; a checkout's would be compiled at each start."""
    if not all(compileall.compile_dir(ROOT / each, quiet=1) for each in ("agent", "functions")):
        tell("some sources cannot be compiled")


def install_loop(tell: Tell) -> None:
    """A Python with paho, ONNX Runtime and numpy."""
    _environment(LOOP, LOOP_NEEDS, tell)


def install_mlserver(tell: Tell) -> None:
    """A Python with MLServer."""
    _environment(MLSERVER, MLSERVER_NEEDS, tell)


def install_node_red(tell: Tell) -> None:
    """Node-RED with onnxruntime-node. No package's scripts run: they would download what a CPU does not need."""
    stamp = NODE_RED / ".installed"
    if not stamp.exists():
        tell(f"install {', '.join(NODE_NEEDS)}")
        NODE_RED.mkdir(parents=True, exist_ok=True)
        (NODE_RED / "package.json").write_text('{"name": "bench", "private": true}\n')
        _run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", *NODE_NEEDS], cwd=NODE_RED)
        stamp.touch()


def _environment(directory: Path, needs: tuple[str, ...], tell: Tell) -> None:
    stamp = directory / ".installed"
    wanted = "\n".join(needs)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    tell(f"install {', '.join(needs)}")
    if not (directory / "bin" / "python").exists():
        _run([sys.executable, "-m", "venv", str(directory)])
    _run([str(directory / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "-q", *needs])
    stamp.write_text(wanted)


def _run(argv: list[str], cwd: Path | None = None) -> None:
    done = subprocess.run(argv, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(argv)} failed:\n{done.stdout[-2000:]}")
