"""The commands that turn a deployment's course by hand: `marram rollback` and `marram cancel`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]
Show = Callable[[argparse.Namespace, Iterator[dict[str, Any]]], dict[str, Any]]
# What a deployment that is turned back by hand ends with.
AS_ASKED = ("CANCELLED", "ROLLED_BACK")


def register(add: Add, show: Show) -> list[argparse.ArgumentParser]:
    """Adds `rollback` and `cancel`; returns both, for the options that all commands share.

    Args:
        add: makes a command of a name, what it runs, what it is for and an example.
        show: prints statuses as they come and returns the last.
    """
    about = "Turn back to the group that ran before, on this device and without a network."
    rollback = add("rollback", lambda options: _turn(options, "rollback", show), about, "marram rollback --wait")
    rollback.add_argument("--wait", action="store_true", help="until it runs again, or cannot")
    about = "End the deployment that is under way; what ran before runs on."
    cancel = add("cancel", lambda options: _turn(options, "cancel", show), about, "marram cancel")
    cancel.set_defaults(wait=True)
    return [rollback, cancel]


def _turn(options: argparse.Namespace, command: str, show: Show) -> int:
    from agent.cli.commands import turn

    last = show(options, turn(options.config, command, wait=options.wait, timeout_s=options.timeout))
    if (last.get("reason") or {}).get("code") in AS_ASKED:
        return 0
    done = ("SUCCEEDED",) if options.wait else ("SUCCEEDED", "IN_PROGRESS")
    return 0 if command == "rollback" and last.get("status") in done else 1
