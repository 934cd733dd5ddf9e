"""The `marram` command: each command in a few lines; what it does lives elsewhere.

Exit codes: 0 success, 1 failed, 2 used wrongly, 78 settings or files that cannot be used (EX_CONFIG), 130 interrupted.
Whatever goes wrong, a user reads one error with a code and what to do, and no traceback: that is for the log.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
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
from agent.cli import runtime as cli_runtime
from agent.cli import spool as cli_spool
from agent.cli.place import DEFAULT_CONFIG
from agent.errors import AgentError, ConfigError

EX_CONFIG = 78


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        return code
    except AgentError as error:
        print(f"marram: {error}", file=sys.stderr)
        return EX_CONFIG if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        if logging.getLogger().handlers:  # there is a log to say all of it to
            logging.getLogger("agent").exception("a programming error")
        print(f"marram: {_internal(error)}", file=sys.stderr)
        return 1


def _internal(error: Exception) -> AgentError:
    """A mistake of ours, with the line it was made on, so that a report of it is worth something."""
    *_, last = traceback.extract_tb(error.__traceback__)
    where = f"{Path(last.filename).name}:{last.lineno}"
    text = f"{type(error).__name__}: {error} ({where})."
    return AgentError("INTERNAL", text, "Please report this, with the command and Marram's version.")


# -- the agent --------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    from agent import loop
    from agent.settings.reader import load

    _log(options.log_level)
    settings = load(options.config, strict=False)
    for warning in settings.warnings:
        logging.getLogger("agent").warning("%s", warning)

    async def run() -> None:
        from agent.app import Agent

        await Agent(settings).run()

    loop.run(run())
    return 0


def _check(options: argparse.Namespace) -> int:
    from agent.settings.reader import load

    settings = load(options.config)
    for warning in settings.warnings:
        print(f"warning: {warning}")
    cloud = "the same connection" if settings.cloud is None else settings.cloud.url
    print(f"{settings.file}: core {settings.core}, {len(settings.subscriptions)} subscriptions; "
          f"local {settings.local.url}, cloud {cloud}. Nothing wrong found.")  # fmt: skip
    return 0


def _log(level: str) -> None:
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)sZ %(levelname)s %(name)s: %(message)s"
    )


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="marram", description="Runs machine-learning models beside the machines that make the data, over MQTT."
    )
    parser.add_argument("--version", action="version", version=f"marram {agent.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

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
            "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="the settings (default: ./topics.yaml)"
        )
        return command

    run = add("run", _run, "Run the agent until SIGTERM or Ctrl-C.", "marram run --config /etc/marram/topics.yaml")
    add("check", _check, "Check the settings without running anything.", "marram check --config topics.yaml")
    broker = cli_broker.register(add, _log)
    for each in (run, broker):
        each.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])

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
    return parser
