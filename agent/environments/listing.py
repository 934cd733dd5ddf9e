"""What runtimes are there: in the agent's own Python, in the policy's interpreters and in the environments made here.

Each interpreter is asked for its packages' metadata; nothing is imported. Blocks; for the command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agent.environments.libdlr import place_of
from agent.environments.making import MARKER
from agent.environments.recipes import OLDEST, RECIPES
from agent.values import dataclass

DEADLINE_S: Final = 60.0
# Printed: its version, its prefix, and the versions of those packages that it has.
ASK: Final = """
import json, sys
from importlib import metadata
def version(name):
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return None
found = {name: version(name) for name in sys.argv[1:]}
print(json.dumps({"python": list(sys.version_info[:3]), "prefix": sys.prefix, "packages": found}))
"""


@dataclass(frozen=True, slots=True)
class Found:
    """One interpreter.

    Attributes:
        python: its path.
        names: what policy.interpreters calls it.
        version: of Python, dotted; empty where it cannot be started.
        runtimes: versions by runtime, each with the package that brings it.
        bytes: of its whole environment on disk; 0 where it is none of its own.
        problem: why workers cannot use it, or nothing.
    """

    python: str
    names: tuple[str, ...]
    version: str
    runtimes: Mapping[str, tuple[str, str]]
    bytes: int
    problem: str = ""

    @property
    def values(self) -> dict[str, Any]:
        """As JSON."""
        runtimes = {
            name: {"package": package, "version": version} for name, (package, version) in self.runtimes.items()
        }
        return {
            "python": self.python,
            "version": self.version,
            "interpreters": list(self.names),
            "runtimes": runtimes,
            "bytes": self.bytes,
            "problem": self.problem or None,
        }


def listed(interpreters: Mapping[str, Path], directory: Path) -> list[Found]:
    """The agent's own Python first, then those of the policy, then what `directory` holds besides.

    Args:
        interpreters: paths by their names in the policy, absolute.
    """
    places: dict[str, list[str]] = {sys.executable: []}
    for name, path in interpreters.items():
        places.setdefault(str(path), []).append(name)
    if directory.is_dir():
        for python in sorted(directory.glob("*/bin/python")):
            places.setdefault(str(python), [])
    return [_found(python, tuple(names), directory) for python, names in places.items()]


def _found(python: str, names: tuple[str, ...], directory: Path) -> Found:
    wanted = [name for recipe in RECIPES.values() for name in recipe.names]
    try:
        command = [python, "-I", "-c", ASK, *wanted, "numpy", "msgpack"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
        told = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        return Found(python, names, "", {}, 0, f"it cannot be started: {reason}")
    packages = told["packages"]
    runtimes = {
        runtime: (package, packages[package])
        for runtime, recipe in RECIPES.items()
        for package in recipe.names
        if packages[package]
    }
    prefix = Path(told["prefix"])
    own = Path(python).is_relative_to(prefix)
    version = ".".join(map(str, told["python"]))
    problem = _problem(Path(python), told, runtimes, directory)
    return Found(python, names, version, runtimes, _size(prefix) if own else 0, problem)


def _problem(python: Path, told: Mapping[str, Any], runtimes: Mapping[str, Any], directory: Path) -> str:
    if tuple(told["python"][:2]) < OLDEST:
        return f"it is older than Python {'.'.join(map(str, OLDEST))}"
    missing = [name for name in ("numpy", "msgpack") if not told["packages"][name]]
    if missing:
        return f"it lacks {' and '.join(missing)}"
    if python.is_relative_to(directory) and not (python.parent.parent / MARKER).is_file():
        return "its installation did not come to its end: install it again"
    if "dlr" in runtimes and not place_of(python).is_file():
        return "dlr has no libdlr.so: only models that carry one load"
    return ""


def _size(prefix: Path) -> int:
    total = 0
    for folder, _, files in os.walk(prefix):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue  # taken away meanwhile
    return total
