"""`marram capture`: the samples that wait on a core, and samples written in the formats that training reads."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.cli import place as cli_place

EXAMPLE = "marram capture ls\n  marram capture export samples/ --format webdataset"


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command."""
    capture = add("capture", _help, "Show and export the samples that are kept for training.", EXAMPLE)
    capture.set_defaults(run=lambda options: _help(options, capture))
    actions = capture.add_subparsers(metavar="ACTION")
    ls = actions.add_parser("ls", help="what waits on this core, by function and reason")
    ls.set_defaults(run=_ls)
    export = actions.add_parser(
        "export",
        help="write samples for training",
        description="Write samples for training: those that wait on this core, those in files, or those that a broker "
        "hands out. They stay where they are.",
        epilog="example:\n  mosquitto_sub -t 'marram/+/capture/#' > seen.jsonl\n"
        "  marram capture export samples/ --from seen.jsonl",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.set_defaults(run=_export)
    export.add_argument("directory", type=Path, metavar="DIR", help="where to write")
    export.add_argument("--format", choices=("sagemaker", "webdataset"), default="webdataset")
    export.add_argument("--from", dest="files", nargs="+", type=Path, metavar="FILE", help="messages, one a line")
    cli_place.add_options(export, "take what comes over this broker, mqtt://host:1883")
    export.add_argument("--seconds", type=float, default=10.0, metavar="S", help="for how long, with --broker (10)")
    for each in (ls, export):
        each.add_argument("--config", type=Path, default=argparse.SUPPRESS, metavar="FILE", help="the settings")
        each.add_argument("--json", action="store_true", help="one line of JSON")


def _help(options: argparse.Namespace, parser: argparse.ArgumentParser | None = None) -> int:
    if parser is not None:
        parser.print_help()
    return 2


def _ls(options: argparse.Namespace) -> int:
    from agent.cli.commands import captured

    found = captured(options.config)
    if options.json:
        print(json.dumps(found))
        return 0
    for each in found["waiting"]:
        print(f"{each['function']}  {each['reason']}: {each['count']} samples, {each['bytes']} bytes,"
              f" value {each['least']:.2f} to {each['most']:.2f}, since {each['since']}")  # fmt: skip
    if not found["waiting"]:
        print("no sample waits on this core")
    today = found["capture"]["today"]
    print(f"today: {today['bytes']} bytes" + (f" of {today['most']}" if today["most"] else ""))
    for name, each in found["capture"]["functions"].items():
        kept, dropped = sum(each["kept"].values()), each["dropped"]
        print(f"{name}: {each['seen']} requests seen, {kept} kept"
              + "".join(f", {count} dropped ({why})" for why, count in dropped.items())
              + (f", {each['without_scores']} without scores" if each["without_scores"] else ""))  # fmt: skip
    return 0


def _export(options: argparse.Namespace) -> int:
    from agent.capture import export

    done = export.write(options.directory, options.format, _messages(options))
    if options.json:
        print(json.dumps(done.told()))
    else:
        print(f"{done.samples} samples in {len(done.files)} files below {options.directory}"
              + (f"; {done.doubles} came twice" if done.doubles else "")
              + (f"; {done.unreadable} messages were no samples" if done.unreadable else ""))  # fmt: skip
    return 0


def _messages(options: argparse.Namespace) -> Iterator[bytes]:
    from agent.capture import export
    from agent.cli import commands

    if options.files:
        return export.read_files(options.files)
    if options.broker is None:
        return commands.captured_messages(options.config)
    return commands.heard_samples(cli_place.place_of(options), until=time.monotonic() + options.seconds)
