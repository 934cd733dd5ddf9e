"""A deployment's statuses on the command's standard output: lines, and on a terminal a bar for what is fetched.

rich draws the bar; it is loaded in the command's process, on a terminal, when the first bytes have come.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

Status = dict[str, Any]


def show(statuses: Iterable[Status], *, as_json: bool) -> Status:
    """Prints statuses as they come, and returns the last; of what they repeat, each line once."""
    last: Status = {}
    told: set[str] = set()
    with _Bar() as bar:
        for status in statuses:
            last = status
            if as_json:
                print(json.dumps(status), flush=True)
                continue
            progress = status.get("progress")
            drawn = bar.draw(progress) if progress else bar.hide()
            lines = [*lines_of(status), *([] if drawn or not progress else [_line_of(progress)])]
            for line in lines:
                if line not in told:
                    bar.say(line)
            told.update(lines)
    return last


def lines_of(status: Status) -> list[str]:
    """What a status says, but for its progress."""
    reason = status.get("reason")
    why = f": {reason['code']}: {reason['message']}" if reason else ""
    lines = [f"{status['deploymentId']} {status['status']} {status.get('phase') or ''}".rstrip() + why]
    lines += [f"  warning: {warning}" for warning in status.get("warnings") or ()]
    if status["status"] == "SUCCEEDED":
        lines += [f"  {each['id']} {each['version']}" for each in status.get("resources") or ()]
    return lines


def _line_of(progress: dict[str, Any]) -> str:
    there, total = progress["bytes"], progress["total"]
    percent = f"{100 * there // total} %" if total else "100 %"
    return f"  {progress['id']}: {percent} of {total / 1e6:.1f} MB"


class _Bar:
    """At most one bar below the lines, where standard output is a terminal."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.hide()

    def draw(self, progress: dict[str, Any]) -> bool:
        """Shows how far a source has come; False where there is no terminal to draw on."""
        if not sys.stdout.isatty():
            return False
        if self._progress is None:
            self._progress = _new_bar()
            self._progress.start()
        id, there, total = progress["id"], progress["bytes"], progress["total"]
        if id not in self._tasks:
            self._tasks[id] = self._progress.add_task(id, total=total)
        self._progress.update(self._tasks[id], completed=there, total=total)
        return True

    def hide(self) -> bool:
        """Takes the bar away."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._tasks = None, {}
        return False

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._progress is None:
            print(line, flush=True)
        else:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _new_bar() -> Any:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("  {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn())  # fmt: skip
    return Progress(*columns, transient=True)
