"""The options by which commands reach a core over a broker."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from agent.cli import run

DEFAULT_CONFIG: Final = Path(run.DEFAULT_CONFIG)


def add_options(command: argparse.ArgumentParser, about: str) -> None:
    """Adds --broker and what it needs; `about` is what the broker is for."""
    command.add_argument("--broker", metavar="URL", help=about)
    command.add_argument(
        "--core", metavar="NAME", help="the core's name, with --broker (default: that of --config, if given)"
    )
    for file in ("ca", "cert", "key"):
        command.add_argument(f"--{file}", type=Path, metavar="FILE", help=f"{file} of an mqtts:// broker, PEM")
    command.add_argument(
        "--password-file", type=Path, metavar="FILE", help="the password of the user in --broker, in the first line"
    )


def place_of(options: argparse.Namespace) -> Any:
    """Where the command's options say that the core is."""
    from agent.cli.places import Place

    return Place(
        options.config, options.broker, options.core, options.ca, options.cert, options.key, options.password_file,
        told=options.config is not DEFAULT_CONFIG,
    )  # fmt: skip
