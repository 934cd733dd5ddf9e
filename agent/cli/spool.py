"""`marram spool`: what waits for a broker, and the dead letters, tried again or dropped by hand."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any

EXAMPLE = "marram spool --retry 17"


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command."""
    spool = add("spool", _spool, "Show what waits for a broker, and deal with what no broker takes.", EXAMPLE)
    which = spool.add_mutually_exclusive_group()
    which.add_argument("--retry", nargs="+", metavar="ID", help="try these dead letters again; `all` for all")
    which.add_argument("--drop", nargs="+", metavar="ID", help="delete these dead letters; `all` for all")
    spool.add_argument("--json", action="store_true", help="one line of JSON")


def _spool(options: argparse.Namespace) -> int:
    from agent.cli.commands import dead_letters

    action = "retry" if options.retry else "drop" if options.drop else None
    found = dead_letters(options.config, action, _ids(options.retry or options.drop or ["all"]))
    if options.json:
        print(json.dumps(found))
        return 0
    _show(found["spool"])
    said = {"retry": "tried again: ", "drop": "dropped: "}.get(action or "", "")
    for letter in found["letters"]:
        print(f"{said}{letter['id']}  {letter['at']}  {letter['class']} for {letter['link']}, {letter['bytes']} bytes,"
              f" {letter['topic']}: {letter['why']}")  # fmt: skip
    return 0


def _ids(words: list[str]) -> list[int] | None:
    from agent.errors import ConfigError

    if words == ["all"]:
        return None
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ConfigError("BAD_ID", f"{' '.join(words)} names no dead letters.", "Give their numbers, or `all`.")
    return [int(word) for word in words]


def _show(spool: Mapping[str, Any]) -> None:
    for link, classes in spool["backlog"].items():
        waits = ", ".join(f"{_counted(each['count'], kind)} ({each['bytes']} bytes)" for kind, each in classes.items())
        print(f"{link}: {waits} waiting")
    if not spool["backlog"]:
        print("nothing waits")
    for word in ("dropped", "expired"):
        for kind, count in spool[word].items():
            print(f"{_counted(count, kind)} {word} so far")
    print(f"{_counted(spool['dead'], 'dead letter')}; disk {spool['disk']}")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
