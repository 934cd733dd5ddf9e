"""The command line: each command in a few lines; what it does lives elsewhere."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import agent
from agent.cli import broker as cli_broker
from agent.cli import capture as cli_capture
from agent.cli import doctor as cli_doctor
from agent.cli import greengrass as cli_greengrass
from agent.cli import infer as cli_infer
from agent.cli import keys as cli_keys
from agent.cli import new as cli_new
from agent.cli import package as cli_package
from agent.cli import place as cli_place
from agent.cli import rollback as cli_rollback
from agent.cli import run as cli_run
from agent.cli import runtime as cli_runtime
from agent.cli import spool as cli_spool

# -- the agent --------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    return cli_run.run(options.config, options.log_level)


def _check(options: argparse.Namespace) -> int:
    from agent.settings.reader import load

    settings = load(options.config)
    for warning in settings.warnings:
        print(f"warning: {warning}")
    cloud = "the same connection" if settings.cloud is None else settings.cloud.url
    print(f"{settings.file}: core {settings.core}, {len(settings.subscriptions)} subscriptions; "
          f"local {settings.local.url}, cloud {cloud}. Nothing wrong found.")  # fmt: skip
    return 0


# -- models and deployments -------------------------------------------------------------------------------------------


def _deploy(options: argparse.Namespace) -> int:
    from agent.cli.commands import deploy, document_bytes

    body = cli_keys.signed_if_asked(options, document_bytes(options.file))
    last = _show(options, deploy(cli_place.place_of(options), body, wait=options.wait, timeout_s=options.timeout))
    return 0 if last.get("status") in (("SUCCEEDED",) if options.wait else ("SUCCEEDED", "IN_PROGRESS")) else 1


def _show(options: argparse.Namespace, statuses: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Prints statuses as they come, and returns the last."""
    from agent.cli.progress import show

    return show(statuses, as_json=options.json)


def _status(options: argparse.Namespace) -> int:
    from agent.cli.commands import status

    found = status(cli_place.place_of(options))
    print(json.dumps(found, indent=None if options.json else 2))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from agent.demo import main as demo

    return demo(keep=options.keep, seconds=options.seconds)


# -- the command line -------------------------------------------------------------------------------------------------


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise ValueError(text)
    return seconds


_seconds.__name__ = "number of seconds"  # as argparse's errors name it


def parser() -> argparse.ArgumentParser:
    """Reads every command; what it reads has the command's function as `run`."""
    whole = argparse.ArgumentParser(
        prog="marram", description="Runs machine-learning models beside the machines that make the data, over MQTT."
    )
    whole.add_argument("--version", action="version", version=f"marram {agent.__version__}")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], about: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=about,
            description=about,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        command.add_argument(
            "--config",
            type=Path,
            default=cli_place.DEFAULT_CONFIG,
            metavar="FILE",
            help="the settings (default: ./topics.yaml)",
        )
        return command

    run = add("run", _run, "Run the agent until SIGTERM or Ctrl-C.", "marram run --config /etc/marram/topics.yaml")
    add("check", _check, "Check the settings without running anything.", "marram check --config topics.yaml")
    broker = cli_broker.register(add, cli_run.log_at)
    for each in (run, broker):
        each.add_argument("--log-level", default="info", choices=cli_run.LOG_LEVELS)

    cli_new.register(add)
    cli_doctor.register(add)
    cli_package.register(add)
    cli_runtime.register(add)
    deploy = add("deploy", _deploy, "Send a deployment document to a core.", "marram deploy deployment.yaml --wait")
    deploy.add_argument("file", type=Path, metavar="FILE", help="the document: JSON, YAML or msgpack")
    deploy.add_argument("--wait", action="store_true", help="until it has succeeded or failed")
    deploy.add_argument("--timeout", type=_seconds, default=3600.0, metavar="SECONDS", help="the longest wait")

    turning = cli_rollback.register(add, _show)
    for each in turning:
        each.add_argument("--timeout", type=_seconds, default=600.0, metavar="SECONDS", help="the longest wait")

    cli_keys.add_sign_option(deploy)
    cli_keys.register(add)
    cli_spool.register(add)
    cli_capture.register(add)
    cli_greengrass.register(add)

    status = add("status", _status, "Show what a core runs.", "marram status --json")
    cli_infer.register(add, _seconds)
    for each in (deploy, status):
        cli_place.add_options(each, "over this broker, mqtt://host:1883, in place of the local socket")
    for each in (deploy, status, *turning):
        each.add_argument("--json", action="store_true", help="one line of JSON a result")

    demo = add("demo", _demo, "Show the whole of it on this machine, on free ports.", "marram demo --keep")
    demo.add_argument("--keep", action="store_true", help="stay up afterwards and tell what to type")
    demo.add_argument("--seconds", type=float, default=6.0, help="load around each step (default: 6)")
    return whole
