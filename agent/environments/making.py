"""Makes an environment for a runtime, or puts the runtime into one that is there. Blocks; for the command line.

pip and its configuration are this machine's own. What was made is tried before it counts: the runtime is imported by
the same code that a worker uses. That also leaves its byte code there, which a worker never writes (TensorFlow takes
15 s to import without, 3 s with it).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Final

import functions
from agent.environments.libdlr import install_libdlr
from agent.environments.pythons import find_python, version_of
from agent.environments.recipes import ALWAYS, Recipe, fits, range_of, recipe_of
from agent.errors import AgentError
from agent.values import dataclass

MARKER: Final = "marram-runtime.json"  # in an environment that is whole
PIP: Final = ("--disable-pip-version-check", "--no-input", "--quiet")
PIP_WITH_PYTHON: Final = (22, 3)  # the first that installs into another environment
TRY: Final = (
    "import sys, msgpack; sys.path.insert(0, sys.argv[1]); from functions.runtimes import {0}; print({0}.version())"
)
WORDS: Final = 8  # lines of pip's in a message
OFFLINE: Final = ("Failed to establish a new connection", "Temporary failure in name resolution", "No route to host",
                  "Network is unreachable", "Connection refused", "NewConnectionError", "ProxyError",
                  "timed out", "(from versions: none)")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be made.

    Attributes:
        runtime: its name.
        place: the environment's directory.
        existing: whether it must be there already, as with `--into`.
        python: the interpreter to make it with; None: the first that fits.
        packages: in the place of the runtime's own.
        libdlr: a libdlr.so for this machine; None: PyPI's for x86-64.
    """

    runtime: str
    place: Path
    existing: bool = False
    python: str | None = None
    packages: tuple[str, ...] = ()
    libdlr: Path | None = None


def make(wanted: Wanted, say: Callable[[str], None]) -> str:
    """Makes the environment and returns the runtime's version. Idempotent; what failed is taken away again.

    Args:
        say: is told what happens, a line each.

    Raises:
        AgentError: ENVIRONMENT_MISSING, PYTHON_UNFIT, PYTHON_MISSING, RUNTIME_INSTALL_FAILED, RUNTIME_UNUSABLE, or of
            libdlr.so.
    """
    recipe = recipe_of(wanted.runtime, platform.machine(), wanted.packages)
    python = wanted.place / "bin" / "python"
    fresh = not python.exists()
    if fresh and wanted.existing:
        text = f"there is no environment at {wanted.place}"
        raise AgentError("ENVIRONMENT_MISSING", text, f"Make one: python3 -m venv {wanted.place}; or leave out --into.")
    if not fresh and not fits(recipe, version_of(str(python))):
        raise _unfit(wanted.runtime, recipe, str(python))
    try:
        if fresh:
            _make_empty(wanted, recipe, say)
        if not wanted.existing:
            (wanted.place / MARKER).unlink(missing_ok=True)
        _install(wanted, recipe, python, say)
        say(f"import {wanted.runtime}")
        version = _tried(wanted.runtime, python)
    except BaseException:
        if fresh:
            shutil.rmtree(wanted.place, ignore_errors=True)
        raise
    made = {"runtime": wanted.runtime, "version": version, "made": datetime.now(timezone.utc).isoformat()}
    if not wanted.existing:
        (wanted.place / MARKER).write_text(json.dumps(made), encoding="utf-8")
    return version


def _make_empty(wanted: Wanted, recipe: Recipe, say: Callable[[str], None]) -> None:
    python = wanted.python or find_python(lambda version: fits(recipe, version))
    if python is None:
        raise _unfit(wanted.runtime, recipe, sys.executable)
    if not fits(recipe, version_of(python)):
        raise _unfit(wanted.runtime, recipe, python)
    say(f"make {wanted.place} with {python}")
    try:
        wanted.place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        text = f"{wanted.place} cannot be made: {error.strerror}"
        raise AgentError("RUNTIME_INSTALL_FAILED", text, "Name another place with --dir.") from error
    own_pip = ["--without-pip"] if _pip_serves_others() else []
    _run([python, "-m", "venv", *own_pip, str(wanted.place)], f"an environment at {wanted.place} cannot be made")


def _install(wanted: Wanted, recipe: Recipe, python: Path, say: Callable[[str], None]) -> None:
    packages = (*recipe.packages, *recipe.beside, *ALWAYS)
    say(f"install {' '.join(packages)} (about {recipe.installed_mb} MB)")
    options = [*PIP, "--only-binary=:all:", "--no-compile"]
    text = f"{' '.join(packages)} cannot be installed into {wanted.place}"
    if recipe.bare:
        _run([*_pip(python), "install", *options, *recipe.beside, *ALWAYS], text)
        _run([*_pip(python), "install", *options, "--no-deps", *recipe.packages], text)
    else:
        _run([*_pip(python), "install", *options, *packages], text)
    if wanted.runtime == "dlr":
        install_libdlr(python, wanted.libdlr, lambda command, what: _run([*_pip(python), *command], what))


def _tried(runtime: str, python: Path) -> str:
    """The runtime's version, by the code that a worker asks with."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "functions").symlink_to(Path(functions.__file__).parent)
        command = [str(python), "-I", "-c", TRY.format(runtime), folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        text = f"{runtime} was installed for {python} and cannot be imported: {_last_lines(done.stderr, 1)}"
        raise AgentError("RUNTIME_UNUSABLE", text, "Look whether the package is for this processor and this Python.")
    return done.stdout.split()[-1]


def _pip(python: Path) -> list[str]:
    own = [str(python), "-m", "pip"]
    if not _pip_serves_others():
        return own
    return [sys.executable, "-m", "pip", "--python", str(python)]


def _pip_serves_others() -> bool:
    try:
        version = metadata.version("pip")
    except metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) >= PIP_WITH_PYTHON


def _run(command: Sequence[str], text: str) -> None:
    """Runs a command to its end.

    Raises:
        AgentError: RUNTIME_INSTALL_FAILED with its last lines.
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise AgentError("RUNTIME_INSTALL_FAILED", f"{text}: {command[0]}: {error.strerror}.") from error
    if done.returncode:
        said = done.stderr or done.stdout
        offline = any(sign in said for sign in OFFLINE)
        remedy = (
            "The package index cannot be reached, or has none for this Python and processor: check the network, or give"
            " pip another index or folder (PIP_INDEX_URL, PIP_FIND_LINKS)."
            if offline
            else "Look at what pip says; pip's own settings and variables hold here."
        )
        raise AgentError("RUNTIME_INSTALL_FAILED", f"{text}: {_last_lines(said, 1 if offline else WORDS)}", remedy)


def _last_lines(said: str, count: int) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("[notice]")]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return " | ".join((errors or lines)[-count:])[:1500] or "it says nothing"


def _unfit(runtime: str, recipe: Recipe, python: str) -> AgentError:
    version = ".".join(map(str, version_of(python)))
    text = f"{runtime} ({' '.join(recipe.packages)}) needs Python {range_of(recipe)}; {python} is Python {version}"
    return AgentError("PYTHON_UNFIT", text, "Install such a Python and name it: --python /path/to/python3.11")
