"""How `marram deploy --wait` shows what comes: a bar on a terminal, lines where there is none, each thing once."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time

import pytest

from agent.cli.progress import show
from tests.source_kit import ROOT


def status(phase: str, at: int | None = None, **more: object) -> dict[str, object]:
    told: dict[str, object] = {"deploymentId": "d", "status": "IN_PROGRESS", "phase": phase, "reason": None,
                               "warnings": ["the Logger l is not used"], "resources": []}  # fmt: skip
    if at is not None:
        told["progress"] = {"id": "m", "bytes": at, "total": 97_000_000}
    return {**told, **more}


STATUSES = [
    status("fetching"), status("fetching", 1_000_000), status("fetching", 48_500_000), status("fetching", 97_000_000),
    status("unpacking"),
    status("committed", status="SUCCEEDED", resources=[{"id": "m", "version": "sha256:00", "previous": None}]),
]  # fmt: skip


def test_lines_without_a_terminal_and_each_warning_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(STATUSES, as_json=False) == STATUSES[-1]
    assert capsys.readouterr().out.splitlines() == [
        "d IN_PROGRESS fetching", "  warning: the Logger l is not used",
        "  m: 1 % of 97.0 MB", "  m: 50 % of 97.0 MB", "  m: 100 % of 97.0 MB",
        "d IN_PROGRESS unpacking", "d SUCCEEDED committed", "  m sha256:00",
    ]  # fmt: skip


def test_each_status_is_a_line_of_json_where_a_script_reads(capsys: pytest.CaptureFixture[str]) -> None:
    show(STATUSES, as_json=True)
    assert len(capsys.readouterr().out.splitlines()) == len(STATUSES)


def test_a_bar_on_a_terminal() -> None:
    program = (
        "from tests.test_progress import STATUSES; from agent.cli.progress import show; import time;"
        "show((time.sleep(0.15) or s for s in STATUSES), as_json=False)"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=theirs, env=environment)
    os.close(theirs)
    said, deadline = b"", time.monotonic() + 30
    while time.monotonic() < deadline and select.select([ours], [], [], 10)[0]:
        try:
            said += os.read(ours, 65536)
        except OSError:  # the terminal's other end is closed
            break
    assert child.wait(10) == 0
    assert b"48.5/97.0 MB" in said
    assert said.count(b"warning: the Logger l is not used") == 1
    assert b"SUCCEEDED committed" in said
