"""The commands around model runtimes: `marram runtime install NAME` and `marram runtime list`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.environments.listing import Found

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def register(add: Add) -> None:
    """Adds `runtime`.

    Args:
        add: makes a command of a name, what it runs, what it is for and an example.
    """
    runtime = add("runtime", _list, "Install model runtimes and show which are there.", "marram runtime install mxnet")
    actions = runtime.add_subparsers(title="actions", metavar="ACTION", required=True)
    for each in (_add_install(actions), _add_list(actions)):
        # Behind the action as well; without it there, what stood before the action holds.
        each.add_argument("--config", type=Path, default=argparse.SUPPRESS, metavar="FILE", help="the settings")


def _add_install(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    from agent.environments.recipes import RECIPES

    text = "Make a Python environment with a model runtime in it, for functions to run on."
    example = "example:\n  marram runtime install onnx --package onnxruntime-gpu"
    raw = argparse.RawDescriptionHelpFormatter
    install = actions.add_parser("install", help="install one", description=text, epilog=example, formatter_class=raw)
    install.set_defaults(run=_install)
    install.add_argument("runtime", choices=sorted(RECIPES), metavar="NAME", help=", ".join(sorted(RECIPES)))
    place = install.add_mutually_exclusive_group()
    _add_directory(place)
    place.add_argument("--into", type=Path, metavar="VENV", help="into this environment, which is there already")
    install.add_argument("--name", metavar="NAME", help="the environment's name in DIR (default: the runtime's)")
    install.add_argument(
        "--package", action="append", default=[], metavar="SPEC",
        help="what to install in the place of the runtime's own package: onnxruntime-gpu, tensorflow==2.15",
    )  # fmt: skip
    install.add_argument("--python", metavar="PYTHON", help="make it with this one (default: the first that fits)")
    install.add_argument(
        "--libdlr", type=Path, metavar="FILE", help="dlr: a libdlr.so for this machine; none: models carry their own"
    )
    install.add_argument("--json", action="store_true", help="one line of JSON")
    return install


def _add_list(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    show = actions.add_parser(
        "list", help="show which are there", description="Show which runtimes are there, and where."
    )
    show.set_defaults(run=_list)
    _add_directory(show)
    show.add_argument("--json", action="store_true", help="one line of JSON an interpreter")
    return show


def _add_directory(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--dir",
        type=Path,
        metavar="DIR",
        help="where environments are (default: beside the state, named STATE-runtimes)",
    )


def _install(options: argparse.Namespace) -> int:
    from agent.environments.making import Wanted, make
    from agent.environments.policy import directory_of, line_for

    name = options.name or options.runtime
    place = (options.into or directory_of(options.config, options.dir) / name).absolute()
    wanted = Wanted(
        options.runtime, place, options.into is not None, options.python, tuple(options.package), options.libdlr
    )
    version = make(wanted, lambda text: print(f"- {text}", file=sys.stderr, flush=True))
    python = place / "bin" / "python"
    line = None if options.into else line_for(options.config, name, python)
    if options.json:
        made = {"runtime": options.runtime, "version": version, "python": str(python), "policy": line}
        print(json.dumps(made))
        return 0
    print(f"{options.runtime} {version} is installed for {python}")
    if line:
        print(f"For functions to run on it, topics.yaml needs in policy, and the agent a restart:\n  {line}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from agent.environments.listing import listed
    from agent.environments.policy import directory_of, interpreters_of

    directory = directory_of(options.config, options.dir)
    found = listed(interpreters_of(options.config), directory)
    if options.json:
        for each in found:
            print(json.dumps(each.values))
        return 0
    rows = [_row(each) for each in found]
    heads = ("PYTHON", "RUNTIMES", "SIZE", "INTERPRETER", "PATH")
    widths = [max(len(row[k]) for row in (heads, *rows)) for k in range(4)]
    for row in (heads, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)).rstrip())
    for each in found:
        if each.problem:
            print(f"warning: {each.python}: {each.problem}")
    return 0


def _row(found: Found) -> tuple[str, str, str, str, str]:
    runtimes = ", ".join(f"{name} {version}" for name, (_, version) in found.runtimes.items())
    names = ", ".join(found.names) or ("the agent's own" if found.python == sys.executable else "not in policy")
    size = f"{found.bytes / 1e6:.0f} MB" if found.bytes else "-"
    return found.version or "?", runtimes or "none", size, names, found.python
