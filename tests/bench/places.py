"""Where the bench finds and keeps things, all below the checkout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = ROOT / ".cache" / "bench"
HERE: Final = Path(__file__).resolve().parent
RIVALS: Final = HERE / "rivals"
FUNCTIONS: Final = HERE / "functions"
PAGES: Final = ROOT / "docs" / "benchmarks"

LOAD: Final = CACHE / "bin" / "load"
ECHO: Final = CACHE / "bin" / "echo"
LOOP: Final = CACHE / "loop"
MLSERVER: Final = CACHE / "mlserver"
NODE_RED: Final = CACHE / "node-red"


def loop_python() -> str:
    """The loop's own Python; ours, which has all that it needs, where that is not installed."""
    own = LOOP / "bin" / "python"
    return str(own) if (LOOP / ".installed").exists() else sys.executable
