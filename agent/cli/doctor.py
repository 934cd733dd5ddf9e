"""The command `marram doctor`: what this machine lacks, line by line, each with what to do about it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from agent.doctor.findings import Finding

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]
INDENT: Final = " " * 6


def register(add: Add) -> None:
    """Adds `doctor`.

    Args:
        add: makes a command of a name, what it runs, what it is for and an example.
    """
    about = "Look at all that the agent relies on: this machine, the brokers, certificates, runtimes and stores."
    command = add("doctor", _doctor, about, "marram doctor --config /etc/marram/topics.yaml")
    command.add_argument("--json", action="store_true", help="one line of JSON a finding")


def _doctor(options: argparse.Namespace) -> int:
    """0 where nothing fails; warnings are no failure."""
    from agent.doctor import examine

    worst = 0
    for finding in examine(options.config):
        worst = max(worst, finding.status == "fail")
        print(json.dumps(dataclasses.asdict(finding)) if options.json else _line(finding), flush=True)
    return worst


def _line(finding: Finding) -> str:
    code = f" ({finding.code})" if finding.code else ""
    line = f"{finding.status:<5} {finding.name}: {finding.text}{code}"
    return f"{line}\n{INDENT}{finding.remedy}" if finding.remedy else line
