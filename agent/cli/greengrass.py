"""The command `marram import-greengrass`: a saved Greengrass V1 group becomes a deployment document."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from agent.errors import ConfigError

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def register(add: Add) -> None:
    """Adds `import-greengrass`.

    Args:
        add: makes a command of a name, what it runs, what it is for and an example.
    """
    about = "Turn a Greengrass V1 group, saved as the AWS API's JSON answers, into a deployment document."
    command = add("import-greengrass", _import, about, "marram import-greengrass group/ --output deployment.json")
    command.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="the answers, or a directory of them; any file names"
    )
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="the document (default: standard output)")
    command.add_argument("--id", metavar="ID", help="the DeploymentId (default: the group's name and version)")


def _import(options: argparse.Namespace) -> int:
    from agent.greengrass_import import import_group

    made = import_group(_read(options.files), id=options.id)
    text = json.dumps(made.document, indent=2) + "\n"
    if options.output is None:
        print(text, end="")
    else:
        _write(options.output, text)
    for warning in made.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _read(paths: list[Path]) -> dict[str, bytes]:
    from agent.cli.commands import unreadable

    found: dict[str, bytes] = {}
    for path in paths:
        try:
            files = sorted(path.glob("*.json")) if path.is_dir() else [path]
            found.update({str(file): file.read_bytes() for file in files})
        except OSError as error:
            raise unreadable(path, error) from error
    return found


def _write(file: Path, text: str) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, file)
    except OSError as error:
        raise ConfigError(
            "FILE_UNWRITABLE", f"{file} cannot be written: {error.strerror}.", "Name a file that you may write."
        ) from error
