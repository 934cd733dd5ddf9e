"""The demonstration as a whole: the command that a stranger types, with less load around each step."""

from __future__ import annotations

import re
import subprocess
import sys


def test_the_demonstration_holds_all_that_it_promises() -> None:
    command = [sys.executable, "-m", "agent", "demo", "--seconds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    everything = f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    assert "What was promised, and what was seen" in done.stdout, everything
    failed = re.findall(r"^ *[0-9.]+ s +FAILED (.*)$", done.stdout, re.MULTILINE)
    # How many windows a second are reached is the machine's affair: other tests may run beside this one.
    assert [each for each in failed if not each.startswith("load:")] == [], everything
    assert done.returncode == (1 if failed else 0), everything
