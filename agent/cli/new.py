"""The command `marram new`: a function that works, with a test, and what to do next with it."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.cli.scaffold import Made

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def register(add: Add) -> None:
    """Adds `new`.

    Args:
        add: makes a command of a name, what it runs, what it is for and an example.
    """
    about = "Lay out a new function: code that works, a test of it, and the document that deploys it."
    command = add("new", _new, about, "marram new sorter --model models/sorter/")
    command.add_argument("name", metavar="NAME", help="the function's folder and Id")
    command.add_argument(
        "--model", metavar="DIRECTORY",
        help="a model's directory, whose inputs and outputs the code then names; `onnx`: a small one that comes along",
    )  # fmt: skip
    command.add_argument("--runtime", metavar="NAME", help="the model's runtime (default: by its files)")
    command.add_argument(
        "--interpreter", default=sys.executable, metavar="PYTHON", help="the Python that has it (default: marram's own)"
    )
    command.add_argument("--json", action="store_true", help="one line of JSON")


def _new(options: argparse.Namespace) -> int:
    from agent.cli.scaffold import Wanted, lay_out

    made = lay_out(Wanted(options.name, options.model, options.runtime, options.interpreter), options.config)
    if options.json:
        print(json.dumps({"files": [str(file) for file in made.files], "policy": made.policy, "event": made.event}))
    else:
        print("\n".join(_next_steps(made, options.config)))
    return 0


def _next_steps(made: Made, config: Path) -> list[str]:
    named = [] if config == Path("topics.yaml") else ["--config", str(config)]
    lines = ["Written:", *(f"  {_near(file)}" for file in made.files), ""]
    lines += ["1. Run its test (needs pytest):", f"     pytest {_near(made.folder)}"]
    if made.policy is not None:
        lines += [f"2. Allow its model's source in {_near(made.settings)}:", "     policy:"]
        lines += [f"       sources: [{json.dumps(made.policy)}]"]
    else:
        lines += [f"2. Look at its settings, {_near(made.settings)}:", f"     {_line('check', *named)}"]
    lines += ["3. Run the agent, and in another terminal deploy the function and ask it:"]
    lines += [f"     {_line('run', *named)}", f"     {_line('deploy', _near(made.document), '--wait', *named)}"]
    lines += [f"     {_line('infer', made.name, '--data', json.dumps(made.event), *named)}"]
    lines += ["   or over MQTT, on the local broker:"]
    lines += [f"     mosquitto_sub -t {made.name}/in/{made.name} &"]
    lines += [f"     mosquitto_pub -q 1 -t {made.name}/in -m {shlex.quote(json.dumps(made.event))}"]
    return lines


def _line(*words: str) -> str:
    return shlex.join(["marram", *words])


def _near(path: Path) -> str:
    """A path as one would type it here."""
    return os.path.relpath(path) if Path.cwd() in path.resolve().parents else str(path)
