"""The demonstration as a whole: the command that a stranger types, with less load around each step."""

from __future__ import annotations

import subprocess
import sys


def test_the_demonstration_holds_all_that_it_promises() -> None:
    command = [sys.executable, "-m", "agent", "demo", "--seconds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    assert "NO" not in done.stdout.split("What was promised", 1)[1]
