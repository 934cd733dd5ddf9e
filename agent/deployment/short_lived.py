"""One question to a child that lives for its answer, so that what loads much never does so in the agent.

The question goes to the child's standard input; its answer is one JSON object, and counts only with an exit code of 0.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from agent.errors import TransientError

log = logging.getLogger(__name__)

ROOT: Final = str(Path(__file__).resolve().parents[2])
DEADLINE_S: Final = 30.0


def main_of(module: str) -> str:
    """The program that runs the `main` of one of our modules, and nothing of the surroundings."""
    return f"import sys; sys.path.insert(0, {ROOT!r}); from {module} import main; sys.exit(main())"


def answer_of(program: str, question: bytes, lost: Callable[[str], TransientError]) -> dict[str, Any]:
    """What a program in a new process makes of a question. Blocks for `DEADLINE_S` at most.

    Args:
        program: Python, see `main_of`.
        lost: makes the error of what became of the child.

    Raises:
        TransientError: what `lost` made; the child cannot be started, hangs, or ended without an answer.
    """
    command = [sys.executable, "-I", "-c", program]
    try:
        child = subprocess.run(command, input=question, capture_output=True, timeout=DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        raise lost(f"gave no answer within {DEADLINE_S:g} s") from None
    except OSError as error:
        raise lost(f"cannot be started: {error.strerror}") from error
    try:
        answer = json.loads(child.stdout)
        if child.returncode == 0 and isinstance(answer, dict):
            return answer
    except ValueError:
        pass  # no answer, as below
    said = child.stderr.decode(errors="replace").strip().splitlines()
    how = f"ended with code {child.returncode} and no answer"
    log.error("%s; it said before: %s", lost(how).message, said[-1] if said else "nothing")
    raise lost(how)
