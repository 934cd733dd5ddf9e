"""The command `marram package`: a model's directory becomes an archive, with a health check where one is asked for."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def register(add: Add) -> None:
    """Adds `package`.

    Args:
        add: makes a command of a name, what it runs, what it is for and an example.
    """
    about = "Pack a model's directory and print its digest."
    command = add("package", _package, about, "marram package model/ --output activity.tar.gz --health samples.json")
    command.add_argument("directory", type=Path, metavar="DIRECTORY")
    command.add_argument(
        "--output", type=Path, metavar="FILE", help=".tar.gz, .tar or .zip (default: DIRECTORY.tar.gz)"
    )
    command.add_argument(
        "--health", type=Path, metavar="FILE",
        help="run the model on these samples, a JSON list of {input: values}, and pack them with what came out: each"
        " core that the archive is deployed to sees first whether its model answers the same",
    )  # fmt: skip
    command.add_argument(
        "--tolerance", type=_positive, metavar="NUMBER", help="how far an answer may be off (default: 0.001)"
    )
    command.add_argument(
        "--max-latency-ms", type=_positive, metavar="MS", help="how long an answer may take there, in the median"
    )
    command.add_argument("--runtime", metavar="NAME", help="the model's runtime (default: by its files)")
    command.add_argument(
        "--interpreter", default=sys.executable, metavar="PYTHON", help="the Python that has it (default: marram's own)"
    )
    command.add_argument(
        "--options",
        type=_object,
        default={},
        metavar="JSON",
        help="the runtime's options for --health, as the resource has",
    )
    command.add_argument(
        "--requires", action="append", default=[], type=_requirement, metavar="NAME=VERSION",
        help="what a core must have installed: runtime=1.9, 'numpy=>=1.23,<1.24'; another version is refused",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="one line of JSON")


def _package(options: argparse.Namespace) -> int:
    from agent.archive import check_directory, pack

    directory: Path = options.directory
    check_directory(directory)
    health = _recorded(directory, options)
    made: dict[str, Any] = pack(directory, options.output or Path(f"{directory.resolve().name}.tar.gz"), health=health)
    if options.json:
        print(json.dumps(made))
        return 0
    print(f"{made['archive']}: {len(made['files'])} files, {made['bytes']} bytes")
    if options.health is not None and health is not None:
        print(f"Health check: {len(json.loads(health)['Requests'])} requests")
    print(f"Digest: {made['digest']}")
    return 0


def _recorded(directory: Path, options: argparse.Namespace) -> bytes | None:
    if options.health is None and not options.requires:
        return None
    from agent.cli.recording import Wanted, record

    wanted = Wanted(
        options.health, options.runtime, options.interpreter, options.tolerance, options.max_latency_ms,
        options.options, dict(options.requires),
    )  # fmt: skip
    return record(directory, wanted)


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


def _requirement(text: str) -> tuple[str, str]:
    name, sign, version = text.partition("=")
    if not name or not sign:
        raise ValueError(text)
    return name, version


_object.__name__ = "JSON object"
_requirement.__name__ = "NAME=VERSION"


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e9:
        raise ValueError(text)
    return number


_positive.__name__ = "positive number"  # as argparse's errors name it
